"""Views of a verification: the ladder rung by rung, then the schedule against the full run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dipgo_deploy.verify.graph_check import GraphCheck
    from dipgo_deploy.verify.ladder import Rung
    from dipgo_deploy.verify.verify import VerifyReport

__all__ = ["once_view", "verify_view"]


def verify_view(report: VerifyReport) -> RenderableType:
    """Compile error as relative deviation per rung, and schedule error as PSNR in dB. The two are never mixed."""
    table = Table(box=None, title="the fast path against the slow one", title_justify="left")
    for name in ("rung", "local", "worst at", "free-running", ""):
        table.add_column(name, justify="left" if name in ("rung", "worst at", "") else "right")
    for rung in report.rungs:
        table.add_row(*_cells(rung))
    psnr = report.psnr_db
    quality = (
        f"the schedule against the full run: PSNR median {psnr['p50']:.1f} dB, p10 {psnr['p10']:.1f} dB, "
        f"worst {psnr['worst']:.1f} dB"
    )
    return Group(table, Text(quality), Text("verified" if report.passed else "NOT verified"))


def once_view(checks: Sequence[GraphCheck], tolerance: float) -> RenderableType:
    """The first call of every graph.

    Args:
        checks: deviation from PyTorch and both times.
        tolerance: relative deviation that passes.

    Returns:
        A rich table.
    """
    table = Table(box=None, title="first calls, ONNX Runtime against PyTorch", title_justify="left")
    for name in ("graph", "step", "worst at", "deviation", "seconds", "PyTorch", ""):
        table.add_column(name, justify="left" if name in ("graph", "worst at", "") else "right")
    for check in checks:
        times = f"{check.seconds:.2f}", f"{check.torch_seconds:.2f}"
        verdict = "ok" if check.relative <= tolerance else "FAILED"
        table.add_row(check.graph, str(check.step), check.output, f"{check.relative:.1e}", *times, verdict)
    return table


def _cells(rung: Rung) -> tuple[str, str, str, str, str]:
    local = "-" if rung.local is None else f"{rung.local.relative:.1e}"
    deviation = rung.first or rung.local
    where = "-" if deviation is None else f"{deviation.value}, step {deviation.step}"
    return rung.name, local, where, f"{rung.free:.1e}", "ok" if rung.passed else "FAILED"

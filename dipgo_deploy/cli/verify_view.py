"""Views of a verification: the ladder rung by rung, then the schedule against the full run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dipgo_deploy.core.metrics import psnr_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dipgo_deploy.verify.graph_check import GraphCheck
    from dipgo_deploy.verify.rung import Rung
    from dipgo_deploy.verify.verify import VerifyReport

__all__ = ["once_view", "verify_view"]


_FAR_DB = 20.0
"""A median PSNR below this number is remarked on, because the table above says ok."""

_HEADINGS = ("rung", "local", "worst at", "free-running", "")


def verify_view(report: VerifyReport) -> RenderableType:
    """Every deviation next to its tolerance, then two verdicts, which are never mixed.

    The first verdict is about the compiler: does the program compute what the schedule says? The second verdict is
    about the schedule: are its images near those of the full run?
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _HEADINGS:
        table.add_column(name, justify="right" if name in ("local", "free-running") else "left", no_wrap=bool(name))
    for rung in report.rungs:
        table.add_row(*_cells(rung), style=None if rung.passed else "bold red")
    head = Text("the fast path against the slow one: deviation and tolerance, relative to the largest value")
    return Group(head, table, Text(_compiler_verdict(report)), Text(_schedule_verdict(report)))


def _compiler_verdict(report: VerifyReport) -> str:
    failed = [rung.name for rung in report.rungs if not rung.passed]
    if failed:
        return f"compiler: FAILED, the program is not the schedule: {', '.join(failed)}"
    return "compiler: ok, the program computes what the schedule says"


def _schedule_verdict(report: VerifyReport) -> str:
    psnr = report.psnr_db
    numbers = (
        f"PSNR to the full run median {psnr_text(psnr['p50'])}, p10 {psnr_text(psnr['p10'])}, "
        f"worst {psnr_text(psnr['worst'])}"
    )
    if report.near_full_run is None:
        far = f"; below {_FAR_DB:.0f} dB, images differ visibly" if psnr["p50"] < _FAR_DB else ""
        return f"schedule: {numbers}{far}; not judged, no gate is set: --min-psnr"
    verdict = "ok, near the full run" if report.near_full_run else "FAILED, not near the full run"
    return f"schedule: {verdict}: {numbers}, required median {report.min_psnr_db:g} dB"


def once_view(checks: Sequence[GraphCheck], tolerance: float) -> RenderableType:
    """The first call of every graph.

    Args:
        checks: deviation from PyTorch and both times.
        tolerance: relative deviation that passes.

    Returns:
        A rich renderable.
    """
    head = Text("first calls, ONNX Runtime against PyTorch: deviation and tolerance, relative to the largest value")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("graph", "step", "worst at", "deviation", "seconds", "PyTorch", ""):
        table.add_column(name, justify="left" if name in ("graph", "worst at", "") else "right", no_wrap=True)
    for check in checks:
        times = f"{check.seconds:.2f}", f"{check.torch_seconds:.2f}"
        passed = check.relative <= tolerance
        deviation = _against(check.relative, tolerance, not passed)
        table.add_row(
            check.graph, str(check.step), check.output, deviation, *times, "ok" if passed else "FAILED",
            style=None if passed else "bold red",
        )  # fmt: skip
    return Group(head, table)


def _cells(rung: Rung) -> tuple[str, str, str, str, str]:
    local = "-"
    if rung.local is not None:
        local = _against(rung.local.relative, rung.local.tolerance, "local" in rung.past)
    where = "-" if rung.local is None else f"{rung.local.value}, step {rung.local.step}"
    free = _against(rung.free, rung.free_tolerance, "free" in rung.past)
    broken = " and ".join({"free": "free-running"}.get(name, name) for name in rung.past)
    return rung.name, local, where, free, f"FAILED: {broken}" if broken else "ok"


def _against(deviation: float, tolerance: float | None, broken: bool) -> str:
    """A deviation next to its tolerance, such as ``3.1e-02 > 2.0e-02``."""
    if tolerance is None:
        return f"{deviation:.1e}"
    return f"{deviation:.1e} {'>' if broken else '≤'} {tolerance:.1e}"

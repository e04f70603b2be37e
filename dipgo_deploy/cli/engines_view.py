"""View of built engines for the terminal: a table, what half precision took, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from dipgo_deploy.cli.units import count_text, mib_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dipgo_deploy.core.engine import EngineRecord
    from dipgo_deploy.core.precision import PrecisionRecord
    from dipgo_deploy.runtime.engines import EngineReport

__all__ = ["engines_view"]


def engines_view(report: EngineReport) -> Iterator[RenderableType]:
    """What to print of a build."""
    if report.precision is not None:
        yield from _precision_lines(report.precision)
    yield _table(report)
    done = ", ".join(f"{count} {outcome}" for outcome, count in report.counts.items() if count)
    yield f"{count_text(len(report.steps), 'engine')} ({done}) in {report.folder}"


def _precision_lines(record: PrecisionRecord) -> Iterator[str]:
    yield (
        f"{record.dtype}: deviates by {record.local:.1e} a graph and {record.free:.1e} in the image "
        f"({record.tolerance:g} allowed a graph, {count_text(record.images, 'image')})"
    )
    for island in record.islands:
        yield f"  float32: {count_text(len(island.nodes), 'node')} of {island.block}, for {island.reason}"
    for name in record.wide:
        yield f"  float32: the feature {name}, which {record.dtype} cannot hold"


def _table(report: EngineReport) -> Table:
    table = Table()
    for title in ("engine", "", "size", "weights", "activations", "layers", "seconds"):
        table.add_column(title, justify="left" if title in ("engine", "") else "right")
    outcomes = {step.record.graph: step.outcome for step in report.steps}
    for record in report.records:
        table.add_row(record.graph, outcomes[record.graph], *_numbers(record))
    return table


def _numbers(record: EngineRecord) -> tuple[str, ...]:
    activations = "unknown" if record.activation_bytes is None else mib_text(record.activation_bytes)
    size, weights = mib_text(record.bytes), mib_text(record.weight_bytes)
    return size, weights, activations, str(record.layers), f"{record.seconds:.1f}"

"""View of built engines for the terminal: a table, what half precision took, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from dipgo_deploy.cli.units import count_text, mib_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dipgo_deploy.core.engine import EngineRecord
    from dipgo_deploy.core.precision import PrecisionRecord
    from dipgo_deploy.runtime.dry_run import DryRun
    from dipgo_deploy.runtime.engines import EngineReport

__all__ = ["dry_run_view", "engine_view", "engines_view", "precision_view"]


def engines_view(report: EngineReport) -> Iterator[RenderableType]:
    """What to print of a build."""
    if report.precision is not None:
        yield from _precision_lines(report.precision)
    if report.note:
        yield Text(report.note)
    outcomes = {step.record.graph: step.outcome for step in report.steps}
    yield _table([(record, outcomes[record.graph]) for record in report.records])
    done = ", ".join(f"{count} {outcome}" for outcome, count in report.counts.items() if count)
    built = sum(record.bytes for record in report.records)
    yield f"{count_text(len(report.steps), 'engine')} ({done}) in {report.folder}"
    yield f"{mib_text(built)}, {mib_text(sum(report.foretold.values()))} were foretold"


def dry_run_view(found: DryRun) -> Iterator[RenderableType]:
    """What to print of a build that was not done."""
    if found.converts:
        yield "half-precision graphs and weights would be made first, after a search for islands"
    if found.note:
        yield Text(found.note)
    table = Table()
    for title in ("engine", "would be", "size", "", "weights", "digest"):
        table.add_column(title, justify="right" if title in ("size", "weights") else "left")
    for one in found.engines:
        sure, digest = "" if one.exists else "foretold", (one.digest or "unknown yet")[:12]
        sizes = mib_text(one.engine_bytes), sure, mib_text(one.weight_bytes)
        table.add_row(one.graph, one.outcome, *sizes, digest)
    yield table
    done = ", ".join(f"{count} {outcome}" for outcome, count in found.counts.items() if count)
    total = mib_text(sum(one.engine_bytes for one in found.engines))
    yield f"{count_text(len(found.engines), 'engine')} ({done}) of {total} would stand in {found.folder}"


def precision_view(record: PrecisionRecord) -> Text:
    """What half precision took."""
    fixed = f"  float32: {count_text(len(record.fixed), 'node')} whatever the weights are"
    return Text("\n".join([*_precision_lines(record), fixed]))


def engine_view(record: EngineRecord) -> RenderableType:
    """The record of one engine: its size, and where and as what it runs."""
    from rich.console import Group

    runs = f"{record.target} {record.version} on {record.gpu}, {record.precision}"
    batch = f"{record.batch.min} to {record.batch.max} images, best at {record.batch.opt}"
    flags = f"; {', '.join(record.flags)}" if record.flags else ""
    return Group(_table([(record, "")]), Text(f"{runs}, {batch}{flags}; sha256 {record.sha256[:12]}"))


def _precision_lines(record: PrecisionRecord) -> Iterator[str]:
    yield (
        f"{record.dtype}: deviates by {record.local:.1e} a graph and {record.free:.1e} in the image "
        f"({record.tolerance:g} allowed a graph, {count_text(record.images, 'image')})"
    )
    for island in record.islands:
        yield f"  float32: {count_text(len(island.nodes), 'node')} of {island.block}, for {island.reason}"
    for name in record.wide:
        yield f"  float32: the feature {name}, which {record.dtype} cannot hold"


def _table(rows: Sequence[tuple[EngineRecord, str]]) -> Table:
    """Records with what became of each."""
    table = Table()
    for title in ("engine", "", "size", "weights", "activations", "layers", "seconds"):
        table.add_column(title, justify="left" if title in ("engine", "") else "right")
    for record, outcome in rows:
        table.add_row(record.graph, outcome, *_numbers(record))
    return table


def _numbers(record: EngineRecord) -> tuple[str, ...]:
    activations = "unknown" if record.activation_bytes is None else mib_text(record.activation_bytes)
    size, weights = mib_text(record.bytes), mib_text(record.weight_bytes)
    return size, weights, activations, str(record.layers), f"{record.seconds:.1f}"

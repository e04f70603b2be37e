"""Views of engines for the terminal: built, planned, or only estimated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from dipgo_deploy.cli.units import count_text, mib_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dipgo_deploy.core.engine import EngineRecord
    from dipgo_deploy.core.precision import PrecisionRecord
    from dipgo_deploy.engines import EngineReport, Plan
    from dipgo_deploy.engines.estimate import DryRun
    from dipgo_deploy.engines.planner import LayoutPlan

__all__ = ["dry_run_view", "engine_view", "engines_view", "plan_view", "precision_view"]


def engines_view(report: EngineReport) -> Iterator[RenderableType]:
    """The result of a build: precision, a table of engines, and their folder."""
    if report.precision is not None:
        yield from _precision_lines(report.precision)
    status = {engine.record.graph: engine.status for engine in report.engines}
    yield _table([(record, status[record.graph]) for record in report.records])
    total = mib_text(sum(record.bytes for record in report.records))
    yield f"{count_text(len(report.engines), 'engine')} ({_counts(report.counts)}), {total}, in {report.folder}"


def dry_run_view(estimate: DryRun) -> Iterator[RenderableType]:
    """What a build would do."""
    if estimate.searches:
        yield "half-precision graphs would be made first, after a search for fp32 fallback nodes"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("engine", "would be", "size", "weights", "digest"):
        table.add_column(title, justify="right" if title in ("size", "weights") else "left")
    for engine in estimate.engines:
        size = f"{'' if engine.is_measured else '≈ '}{mib_text(engine.engine_bytes)}"
        digest = (engine.digest or "not known yet")[:13]
        table.add_row(engine.graph, engine.status, size, mib_text(engine.weight_bytes), digest)
    yield table
    total = mib_text(sum(engine.engine_bytes for engine in estimate.engines))
    counts = _counts(estimate.counts)
    yield f"{count_text(len(estimate.engines), 'engine')} ({counts}), ≈ {total}, would be in {estimate.folder}"


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def precision_view(record: PrecisionRecord) -> Text:
    """The nodes of a half-precision bundle that stay in float32."""
    always = f"  float32: {count_text(len(record.always_fp32), 'node')} whatever the weights are"
    return Text("\n".join([*_precision_lines(record), always]))


def engine_view(record: EngineRecord) -> RenderableType:
    """The record of one engine: its size, and where and how it runs."""
    from rich.console import Group

    machine = f"{record.target} {record.version} on {record.gpu}, {record.precision}"
    batch = f"{record.batch.min} to {record.batch.max} images, best at {record.batch.opt}"
    flags = f"; {', '.join(record.flags)}" if record.flags else ""
    return Group(_table([(record, "")]), Text(f"{machine}, {batch}{flags}; sha256 {record.sha256[:12]}"))


def _precision_lines(record: PrecisionRecord) -> Iterator[str]:
    yield (
        f"{record.dtype}: deviates by {record.local:.1e} a graph and {record.free:.1e} in the image "
        f"({record.tolerance:g} allowed a graph, {count_text(record.images, 'image')})"
    )
    for group in record.fallback:
        yield f"  float32: {count_text(len(group.nodes), 'node')} of {group.block}, because {group.reason}"
    for name in record.fp32_tensors:
        yield f"  float32: the feature {name}, which {record.dtype} cannot hold"


def _table(rows: Sequence[tuple[EngineRecord, str]]) -> Table:
    """Records with the build status of each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("engine", "", "size", "weights", "activations", "layers", "seconds"):
        table.add_column(title, justify="left" if title in ("engine", "") else "right")
    for record, status in rows:
        activations = "unknown" if record.activation_bytes is None else mib_text(record.activation_bytes)
        sizes = mib_text(record.bytes), mib_text(record.weight_bytes), activations
        table.add_row(record.graph, status, *sizes, str(record.layers), f"{record.seconds:.1f}")
    return table


_PLAN_HEADINGS = ("engines", "engine bytes", "slots", "activations", "device", "at least", "loads a run", "calls", "ms")


def plan_view(plan: Plan) -> RenderableType:
    """Both layouts with their memory and time, and the recommended one."""
    from rich.console import Group

    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("layout", no_wrap=True)
    for heading in _PLAN_HEADINGS:
        grid.add_column(heading, justify="right", no_wrap=True)
    for layout in plan.layouts:
        grid.add_row(*_plan_cells(layout), style="bold" if layout.layout == plan.recommended else None)
    chosen = f"take {plan.recommended}: {plan.reason}" if plan.recommended else f"no recommendation: {plan.reason}"
    notes = (
        "≈: estimated as weights plus a constant per node. Slots are exact. At least: with one engine loaded at a time."
    )
    if plan.latency_error is not None:
        notes += (
            f"\nTimes are estimates from the latency table. Its single calls are wrong by ±{plan.latency_error:.0%}."
        )
    if plan.target == "tensorrt":
        notes += "\nNo engine of the TensorRT library was measured yet: its code is not counted."
    return Group(Text(f"batch {plan.batch}, {plan.precision}"), grid, Text(notes, style="dim"), Text(chosen))


def _plan_cells(layout: LayoutPlan) -> tuple[str, ...]:
    loads = "does not fit" if layout.reload is None else f"{layout.reload.loads} (≈ {mib_text(layout.reload.bytes)})"
    estimates = (layout.activation_bytes, layout.device_bytes, layout.least_bytes)
    latency = "-" if layout.latency_ms is None else f"≈ {layout.latency_ms:.4g}"
    return (
        layout.layout,
        str(layout.engines),
        f"≈ {mib_text(layout.engine_bytes)}",
        mib_text(layout.slot_bytes),
        *(f"≈ {mib_text(size)}" for size in estimates),
        loads,
        str(layout.calls),
        latency,
    )

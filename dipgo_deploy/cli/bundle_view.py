"""Views of block graphs, bundles and latency tables for the terminal. Each returns a rich renderable."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dipgo_deploy.cli.program_view import contract_table, memory_line, shape_text
from dipgo_deploy.cli.units import count_text, macs_text, mib_text
from dipgo_deploy.core.blocks import Block, BlockGraph, Macs
from dipgo_deploy.core.bundle import BundleManifest
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.tensors import ROWS

__all__ = ["blocks_view", "bundle_view", "latency_view"]


_OUTSIDE_LIMIT = 0.05
"""A larger share of MACs outside all blocks gives a warning, because no schedule can prune these MACs."""


def blocks_view(graph: BlockGraph) -> RenderableType:
    """The blocks with MACs per row in both conventions, weights and feature shapes.

    A warning is added if more than 5 % of the MACs (``papers``) lie outside all blocks.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("block", no_wrap=True)
    for heading in ("papers", "full", "%", "weights", "stored"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("features")
    for block in graph.blocks:
        shapes = ", ".join(_shape(graph, name) for name in block.features)
        size, stored = mib_text(block.weight_bytes), _stored(graph, [block])
        table.add_row(block.name, *_costs(block.macs, graph), size, stored, shapes)
    outside = max(0, graph.weight_bytes - sum(block.weight_bytes for block in graph.blocks))
    table.add_row("outside every block", *_costs(graph.outside_macs, graph), mib_text(outside), "", "", style="dim")
    stored = _stored(graph, graph.blocks)
    table.add_row("whole network", *_costs(graph.macs, graph), mib_text(graph.weight_bytes), stored, "", style="bold")
    heading = (
        f"{graph.model_class} {graph.model_digest[:12]}, {graph.dtype}: {len(graph.blocks)} blocks at granularity "
        f"{graph.granularity}; MACs and stored features of one row, conventions papers and full"
    )
    inputs = ", ".join(f"{spec.name} {shape_text(spec.shape)}" for spec in graph.inputs)
    return Group(Text(heading), Text(f"inputs: {inputs}; {_sizes_text(graph)}"), table, *_outside_warning(graph))


def _sizes_text(graph: BlockGraph) -> str:
    """The free sizes, and why a size is fixed that might have been free."""
    free = [f"{name} {size} (counted at {size.opt})" for name, size in graph.sizes.items() if not size.is_fixed]
    fixed = [f"{name} fixed at {graph.sizes[name].opt}: {reason}" for name, reason in graph.refused.items()]
    start = f"free: {', '.join(['rows', *free])}" if free else "all but rows is fixed"
    return "; ".join([start, *fixed])


def _stored(graph: BlockGraph, blocks: Iterable[Block]) -> str:
    """Bytes per row to store the features of all ``blocks``."""
    specs = [graph.values[name] for block in blocks for name in block.features if name in graph.values]
    sizes = {ROWS: 1, **{name: size.opt for name, size in graph.sizes.items()}}
    return mib_text(sum(spec.nbytes(sizes) for spec in specs))


def _outside_warning(graph: BlockGraph) -> list[Text]:
    share = graph.outside_macs.papers / max(1, graph.macs.papers)
    if share <= _OUTSIDE_LIMIT:
        return []
    warning = (
        f"warning: {share:.1%} of the MACs lie outside every block and cannot be pruned while the network is called"
    )
    return [Text(warning, style="yellow")]


def _costs(macs: Macs, graph: BlockGraph) -> tuple[str, str, str]:
    share = 100 * macs.papers / max(1, graph.macs.papers)
    return macs_text(macs.papers), macs_text(macs.full), f"{share:.1f}"


def _shape(graph: BlockGraph, name: str) -> str:
    spec = graph.values.get(name)
    return "?" if spec is None else shape_text(spec.shape)


def bundle_view(manifest: BundleManifest, folder: Path | None = None, program: Program | None = None) -> RenderableType:
    """A bundle: its contract, its files with sizes and short digests, and the tools that made it.

    Args:
        manifest: manifest of the bundle.
        folder: folder of the bundle.
        program: if given, the memory that a run needs is shown too.

    Returns:
        A rich renderable.
    """
    total = sum(record.bytes for record in manifest.files)
    heading = Text(f"bundle {folder}" if folder else "bundle", style="bold")
    files = Table(box=None, pad_edge=False, header_style="bold")
    files.add_column("file", overflow="fold")
    files.add_column("size", justify="right", no_wrap=True)
    files.add_column("sha256", no_wrap=True)
    for record in manifest.files:
        files.add_row(record.path, mib_text(record.bytes), record.sha256[:12])
    summary = (
        f"{count_text(len(manifest.files), 'file')}, {mib_text(total)}; {count_text(len(manifest.graphs), 'graph')}; "
        f"the model's weights are {mib_text(manifest.model_weight_bytes)}"
    )
    versions = ", ".join(f"{tool} {version}" for tool, version in manifest.versions.items())
    memory = [Text(memory_line(program, batch)) for batch in (1, 8)] if program else []
    made = [Text(f"made with {versions}", style="dim")] if versions else []
    return Group(heading, contract_table(manifest.contract), files, Text(summary), *memory, *made)


def latency_view(table: LatencyTable) -> RenderableType:
    """The blocks with their share of a full call, and the fixed costs of calls."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("block", no_wrap=True)
    for heading in ("ms", "%"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for name, ms in table.blocks_ms.items():
        grid.add_row(name, f"{ms:.3f}", f"{100 * ms / table.forward_ms:.1f}")
    outside = table.forward_ms - sum(table.blocks_ms.values())
    grid.add_row("outside every block", f"{outside:.3f}", f"{100 * outside / table.forward_ms:.1f}", style="dim")
    grid.add_row("whole call", f"{table.forward_ms:.3f}", "", style="bold")
    head = f"{table.model_class} {table.model_digest[:12]} on {table.target}, {table.rows} rows, {table.dtype}"
    cost = (
        f"a call {1e3 * table.call_ms:.0f} \N{MICRO SIGN}s, a combination {1e3 * table.combine_ms:.0f} "
        f"\N{MICRO SIGN}s, a MiB of weights fetched {table.cold_ms_per_mib:.2f} ms"
    )
    error = f"error of the table: the estimated time of a call is wrong by ±{table.spread:.0%} (root mean square)"
    return Group(Text(head), grid, Text(cost), Text(error))

"""A latency table for the terminal: what each block costs of a call, and what calls cost besides."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dipgo_deploy.core.latency import LatencyTable

__all__ = ["latency_view"]


def latency_view(table: LatencyTable) -> RenderableType:
    """The blocks with their share of a full call, and what calls cost besides."""
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
        f"\N{MICRO SIGN}s, a MiB of weights fetched {table.cold_ms_per_mib:.2f} ms; calls are met to "
        f"{table.spread:.0%} (root mean square)"
    )
    return Group(Text(head), grid, Text(cost))

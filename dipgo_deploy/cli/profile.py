"""``dipgo-deploy profile``: measure what the blocks of a model cost on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dipgo_deploy.cli.options import (
    Batch,
    Blocks,
    Config,
    Dtype,
    Granularity,
    Json,
    Lora,
    Model,
    RandomWeights,
    Revision,
    Variant,
    patterns_of,
)
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.cli.progress import watched
from dipgo_deploy.cli.source import ModelSource

if TYPE_CHECKING:
    from dipgo_deploy.core.latency import LatencyTable


def profile(
    model: Model = None,
    random_weights: RandomWeights = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    lora: Lora = None,
    out: Annotated[Path, typer.Option(help="Where the latency table is written.")] = Path("latency.json"),
    target: Annotated[
        Literal["onnxruntime-cpu", "onnxruntime-cuda", "torch-cpu", "torch-cuda"],
        typer.Option(help="Backend and device that are measured."),
    ] = "onnxruntime-cpu",
    granularity: Granularity = "stage",
    blocks: Blocks = None,
    batch: Batch = 8,
    guidance: Annotated[Literal["none", "concat"], typer.Option(help="Classifier-free guidance layout.")] = "none",
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")] = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Profile MODEL: latencies of its blocks, fitted to calls timed inside whole trajectories."""
    from dipgo_deploy.core.files import check_target, save_latency_table
    from dipgo_deploy.core.latency import LatencyTable
    from dipgo_deploy.graphs import trace
    from dipgo_deploy.runtime.profiling import ProfileOptions, ProfileProgress
    from dipgo_deploy.runtime.profiling import profile as measure

    check_target(out)
    source = ModelSource(model, random_weights, dtype, False, tuple(lora or ()), variant, revision, config)
    command = shlex.join(["dipgo-deploy", *sys.argv[1:]])
    options = ProfileOptions(
        target=target, batch=batch, guidance=guidance, rounds=rounds, threads=threads, command=command
    )

    def read(step: Any) -> tuple[float, str] | None:
        if isinstance(step, ProfileProgress):
            return step.done / step.total, f"round {step.done} of {step.total}"
        return None

    with working(f"tracing {source.label}"):
        loaded = source.load()
        traced = trace(loaded, granularity=granularity, patterns=patterns_of(blocks))
    table = watched(measure(loaded, traced, options), read, f"profiling on {target}")
    if not isinstance(table, LatencyTable):
        raise AssertionError("a profile ends in its table")
    save_latency_table(out, table)
    if as_json:
        emit({"out": str(out), "forward_ms": table.forward_ms, "blocks_ms": table.blocks_ms, "spread": table.spread})
        return
    result(latency_view(table))
    result(f"in {out}")


def latency_view(table: LatencyTable) -> Any:
    """The blocks with their share of a full call, and what calls cost besides."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

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

"""``dipgo-deploy plan``: what a bundle will take as engines, before any is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dipgo_deploy.cli.options import Bf16, BundleFolder, Fp16, Json, half_type
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.core.errors import MissingError

if TYPE_CHECKING:
    from dipgo_deploy.runtime.planner import LayoutPlan, Plan

_HEADINGS = ("engines", "engine bytes", "slots", "activations", "device", "at least", "loads a run", "calls", "ms")
_LEAST = "at least: one engine at a time"


def plan(
    bundle: BundleFolder,
    gpu_memory: Annotated[str | None, typer.Option(help="GPU memory to fit into, such as 8G or 512M.")] = None,
    latency: Annotated[Path | None, typer.Option(help="Latency table that profile wrote.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images per call; the contract's or table's own.")] = None,
    fp16: Fp16 = False,
    bf16: Bf16 = False,
    target: Annotated[Literal["tensorrt", "rtx"], typer.Option(help="Library whose engines are foretold.")] = "rtx",
    as_json: Json = False,
) -> None:
    """Plan BUNDLE: device memory, engines and time of either layout, and which one to take."""
    from dataclasses import asdict

    from dipgo_deploy.cli.units import byte_count
    from dipgo_deploy.core.files import load_latency_table
    from dipgo_deploy.runtime import load_bundle
    from dipgo_deploy.runtime.planner import PlanOptions
    from dipgo_deploy.runtime.planner import plan as plan_bundle

    options = PlanOptions(
        gpu_memory=None if gpu_memory is None else byte_count(gpu_memory),
        batch=batch,
        table=None if latency is None else load_latency_table(latency),
        precision=half_type(fp16, bf16),
        target=target,
    )
    with working(f"planning {bundle}"):
        found = plan_bundle(load_bundle(bundle), options)
    if as_json:
        emit(asdict(found))
    else:
        result(_view(found))
    if found.recommended is None:
        raise MissingError(f"{found.reason}, --gpu-memory allows {gpu_memory}: give more")


def _view(found: Plan) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("layout", no_wrap=True)
    for heading in _HEADINGS:
        grid.add_column(heading, justify="right", no_wrap=True)
    for one in found.layouts:
        grid.add_row(*_cells(one), style="bold" if one.layout == found.recommended else None)
    chosen = f"take {found.recommended}: {found.reason}" if found.recommended else found.reason
    code = "code is not counted: no engine of this target was measured"
    if found.sizes is not None:
        code = f"code as in {found.sizes}"
    notes = f"engine bytes: the weights of every graph and its code; activations: an estimate; {_LEAST}\n{code}"
    return Group(Text(f"batch {found.batch}, {found.precision}"), grid, Text(notes, style="dim"), Text(chosen))


def _cells(one: LayoutPlan) -> tuple[str, ...]:
    from dipgo_deploy.cli.units import mib_text

    loads = "does not fit" if one.reload is None else f"{one.reload.loads} ({mib_text(one.reload.bytes)})"
    sizes = (one.engine_bytes, one.slot_bytes, one.activation_bytes, one.device_bytes, one.least_bytes)
    latency = "-" if one.latency_ms is None else f"{one.latency_ms:.4g}"
    return one.layout, str(one.engines), *map(mib_text, sizes), loads, str(one.calls), latency

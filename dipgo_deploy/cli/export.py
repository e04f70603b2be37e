"""``dipgo-deploy export``: lower a schedule, cut its graphs and write the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipgo_deploy.cli.options import (
    Config,
    Json,
    Layout,
    Lora,
    MaxGraphs,
    Model,
    RandomWeights,
    Revision,
    Variant,
)
from dipgo_deploy.cli.replacing import Force
from dipgo_deploy.cli.source import ModelSource
from dipgo_deploy.cli.terminal import emit, result, working
from dipgo_deploy.cli.units import count_text


def export(
    schedule: Annotated[Path, typer.Option(help="A schedule that search wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    model: Model = None,
    random_weights: RandomWeights = None,
    lora: Lora = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    layout: Layout = "subnets",
    max_graphs: MaxGraphs = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Typed half precision.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export MODEL under a schedule to a bundle that runs without this model's code."""
    from dipgo_deploy.cli.search_view import say_sampler_note
    from dipgo_deploy.core.files import load_program, load_schedule
    from dipgo_deploy.core.program import memory_bytes

    requested = load_schedule(schedule)
    source = ModelSource(
        model,
        random_weights,
        requested.contract.dtype,
        variant=variant,
        revision=revision,
        config=config,
        loras=tuple(lora or ()),
    )
    from dipgo_deploy.bundle import ExportOptions
    from dipgo_deploy.bundle import export as export_bundle

    options = ExportOptions(layout=layout, max_graphs=max_graphs, dtype="float16" if fp16 else None, replace=force)
    with working(f"exporting {source.label}"):
        loaded = source.load()
        say_sampler_note(requested.contract.sampler)
        folder = export_bundle(loaded, requested, out, options)
    program = load_program(folder / "program.json")
    slots = memory_bytes(program, batch=1)["slots"]
    graphs = [graph.name for graph in program.graphs]
    if as_json:
        emit({"bundle": str(folder), "layout": layout, "graphs": graphs, "nfe": program.nfe, "slot_bytes": slots})
        return
    size = f"slots {slots / 1024:.0f} KiB per image"
    result(f"{count_text(len(graphs), 'graph')}, {program.nfe} network calls per image, {size}")
    result(f"in {folder}")

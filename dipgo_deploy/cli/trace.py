"""``dipgo-deploy trace``: export a model once, with every block's feature as an output, and describe its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipgo_deploy.cli.options import Blocks, Granularity, Json, Lora, Model, patterns_of
from dipgo_deploy.cli.output import emit, result, working


def trace(
    model: Model,
    granularity: Granularity = "stage",
    blocks: Blocks = None,
    lora: Lora = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; a cache folder if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Trace MODEL: which blocks can be skipped, what each needs, gives and costs."""
    patterns = patterns_of(blocks)
    from dipgo_deploy.cli.views import blocks_view
    from dipgo_deploy.graphs import trace as trace_model
    from dipgo_deploy.models import load_model
    from dipgo_deploy.models.lora import loras_from_texts, with_loras

    loras = loras_from_texts(lora)
    with working(f"tracing {model}"):
        traced = trace_model(with_loras(load_model(model), loras), granularity=granularity, patterns=patterns, out=out)
    graph = traced.blocks
    if as_json:
        macs = {"papers": graph.macs.papers, "full": graph.macs.full}
        names = list(graph.block_names)
        emit({"folder": str(traced.folder), "blocks": names, "macs": macs, "weight_bytes": graph.weight_bytes})
        return
    result(blocks_view(graph))
    result(f"in {traced.folder}")

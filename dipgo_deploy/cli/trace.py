"""``dipgo-deploy trace``: export a model once, with every block's feature as an output, and describe its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipgo_deploy.cli.options import (
    Blocks,
    Config,
    Dtype,
    Granularity,
    Json,
    Lora,
    Meta,
    Model,
    RandomWeights,
    Revision,
    Size,
    Tokens,
    Variant,
    patterns_of,
)
from dipgo_deploy.cli.replacing import Force
from dipgo_deploy.cli.source import ModelSource
from dipgo_deploy.cli.terminal import emit, result, working


def trace(
    model: Model = None,
    random_weights: RandomWeights = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    size: Size = None,
    tokens: Tokens = None,
    granularity: Granularity = "stage",
    blocks: Blocks = None,
    lora: Lora = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result. Default: a cache folder.")] = None,
    dtype: Dtype = "float32",
    meta: Meta = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Trace MODEL: which blocks can be skipped, and what each block needs, returns and costs."""
    patterns = patterns_of(blocks)
    source = ModelSource(model, random_weights, dtype, meta, tuple(lora or ()), variant, revision, config, size, tokens)
    from dipgo_deploy.cli.bundle_view import blocks_view
    from dipgo_deploy.graphs import trace as trace_model

    with working(f"tracing {source.label}"):
        traced = trace_model(source.load(), granularity=granularity, patterns=patterns, out=out, replace=force)
    graph = traced.blocks
    if as_json:
        macs = {"papers": graph.macs.papers, "full": graph.macs.full}
        names = list(graph.block_names)
        emit({"folder": str(traced.folder), "blocks": names, "macs": macs, "weight_bytes": graph.weight_bytes})
        return
    result(blocks_view(graph))
    result(f"in {traced.folder}")

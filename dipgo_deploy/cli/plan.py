"""``dipgo-deploy plan``: the memory of a bundle's engines, before any engine is built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dipgo_deploy.cli.options import Bf16, BundleFolder, Fp16, Json, TrustWeights, byte_count, half_type
from dipgo_deploy.cli.terminal import emit, result, working
from dipgo_deploy.core.errors import MissingError


def plan(
    bundle: BundleFolder,
    gpu_memory: Annotated[str | None, typer.Option(help="GPU memory to fit into, such as 8G or 512M.")] = None,
    latency: Annotated[Path | None, typer.Option(help="Latency table that profile wrote.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per call. Default: the table's or the contract's.")
    ] = None,
    fp16: Fp16 = False,
    bf16: Bf16 = False,
    target: Annotated[Literal["tensorrt", "rtx"], typer.Option(help="Library the engines are built for.")] = "rtx",
    trust_weights: TrustWeights = False,
    as_json: Json = False,
) -> None:
    """Plan BUNDLE: device memory, engines and time of both layouts, and the recommended layout."""
    from dataclasses import asdict

    from dipgo_deploy.bundle import load_bundle
    from dipgo_deploy.cli.engine_view import plan_view
    from dipgo_deploy.core.files import load_latency_table
    from dipgo_deploy.engines import PlanOptions
    from dipgo_deploy.engines import plan as plan_bundle

    options = PlanOptions(
        gpu_memory=None if gpu_memory is None else byte_count(gpu_memory),
        batch=batch,
        latency=None if latency is None else load_latency_table(latency),
        precision=half_type(fp16, bf16),
        target=target,
    )
    with working(f"planning {bundle}"):
        planned = plan_bundle(load_bundle(bundle, trust_weights=trust_weights), options)
    if as_json:
        emit(asdict(planned))
    else:
        result(plan_view(planned))
    if not planned.fits:
        raise MissingError(f"{planned.reason}, gpu_memory is {gpu_memory}: give more")

"""``dipgo-deploy verify``: do the backends agree, and how far is the schedule from the full run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dipgo_deploy.cli.options import (
    BundleFolder,
    Device,
    GpuMemory,
    GuidanceScale,
    Json,
    TrustEngines,
    run_options,
)
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.core.errors import GateError


def verify(
    bundle: BundleFolder,
    images: Annotated[int, typer.Option(min=1, help="Images whose trajectories are compared.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of their noise.")] = 1000,
    guidance: GuidanceScale = None,
    tolerance: Annotated[float | None, typer.Option(help="Local deviation allowed, relative.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="Median PSNR to the full run to demand, in dB.")] = None,
    target: Annotated[
        Literal["onnxruntime", "tensorrt", "rtx"], typer.Option(help="Up to which backend; engines need a GPU.")
    ] = "onnxruntime",
    device: Device = None,
    gpu_memory: GpuMemory = None,
    trust_engines: TrustEngines = False,
    as_json: Json = False,
) -> None:
    """Verify BUNDLE: backends against each other call by call, and the schedule against the full run."""
    how = run_options(target, device, False, False, gpu_memory, trust_engines)
    from dataclasses import asdict

    from dipgo_deploy.cli.verify_view import verify_view
    from dipgo_deploy.runtime import VerifyOptions, load_bundle
    from dipgo_deploy.runtime import verify as verify_bundle

    options = VerifyOptions(
        images=images, seed=seed, guidance_scale=guidance, local_tolerance=tolerance, min_psnr_db=min_psnr,
        target=target, device=device or "cpu", gpu_memory=how["gpu_memory"], trust_engines=trust_engines,
    )  # fmt: skip
    with working(f"verifying {bundle}"):
        report = verify_bundle(load_bundle(bundle, whole=True), options)
    if as_json:
        emit({"passed": report.passed, **asdict(report)})
    else:
        result(verify_view(report))
    if not report.passed:
        raise GateError(report.failure)

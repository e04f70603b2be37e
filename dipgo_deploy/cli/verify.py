"""``dipgo-deploy verify``: do the backends agree, and how far is the schedule from the full run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dipgo_deploy.cli.options import (
    BundleFolder,
    Device,
    GpuMemory,
    GuidanceScale,
    Json,
    OwnModel,
    TrustEngines,
    run_options,
)
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.cli.source import open_bundle
from dipgo_deploy.core.errors import GateError, UsageError


def verify(
    bundle: BundleFolder,
    images: Annotated[int | None, typer.Option(min=1, help="Images whose trajectories are compared (4).")] = None,
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
    own_model: OwnModel = None,
    once: Annotated[
        bool, typer.Option("--once", help="One call of every distinct graph instead of trajectories (1 image).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify BUNDLE: backends against each other call by call, and the schedule against the full run."""
    how = run_options(target, None, False, False, gpu_memory, trust_engines)  # the device is that of the other rungs
    if once:
        if guidance is not None or min_psnr is not None or target != "onnxruntime" or device == "cuda":
            raise UsageError(
                "--once compares single calls on the CPU: leave --guidance, --min-psnr, --target and --device cuda out"
            )
        _verify_once(bundle, own_model, images or 1, seed, tolerance, as_json)
        return
    from dataclasses import asdict

    from dipgo_deploy.cli.verify_view import verify_view
    from dipgo_deploy.runtime import VerifyOptions
    from dipgo_deploy.runtime import verify as verify_bundle

    options = VerifyOptions(
        images=images or 4, seed=seed, guidance_scale=guidance, local_tolerance=tolerance, min_psnr_db=min_psnr,
        target=target, device=device or "cpu", gpu_memory=how["gpu_memory"], trust_engines=trust_engines,
    )  # fmt: skip
    with working(f"verifying {bundle}"):
        report = verify_bundle(open_bundle(bundle, own_model, whole=True), options)
    if as_json:
        emit({"passed": report.passed, **asdict(report)})
    else:
        result(verify_view(report))
    if not report.passed:
        raise GateError(report.failure)


def _verify_once(
    bundle: Path, own_model: str | None, images: int, seed: int, tolerance: float | None, as_json: bool
) -> None:
    from dipgo_deploy.cli.verify_view import once_view
    from dipgo_deploy.runtime.graph_check import check_graphs
    from dipgo_deploy.runtime.verify_options import VerifyOptions, local_tolerance

    options = VerifyOptions(images=images, seed=seed, local_tolerance=tolerance)
    with working(f"verifying {bundle}"):
        loaded = open_bundle(bundle, own_model, whole=True)
        found = list(check_graphs(loaded, images, seed=seed))
    allowed = local_tolerance(options, loaded.manifest.contract.dtype)
    worst = max(found, key=lambda check: check.relative)
    passed = worst.relative <= allowed
    if as_json:
        emit({"passed": passed, "tolerance": allowed, "checks": [vars(check) for check in found]})
    else:
        result(once_view(found, allowed))
    if not passed:
        raise GateError(
            f"{worst.graph} differs from PyTorch by {worst.relative:.1e} at {worst.output}, {allowed:g} is allowed: "
            "the fast path is not the slow one"
        )

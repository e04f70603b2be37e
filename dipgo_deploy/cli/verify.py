"""``dipgo-deploy verify``: do the backends agree, and how far is the schedule from the full run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipgo_deploy.cli.latent_sizes import free_sizes
from dipgo_deploy.cli.options import (
    Backend,
    BundleFolder,
    Device,
    GpuMemory,
    GuidanceScale,
    Json,
    OneSize,
    OwnModel,
    TrustEngines,
    run_options,
)
from dipgo_deploy.cli.source import open_bundle
from dipgo_deploy.cli.terminal import emit, result, working
from dipgo_deploy.core.errors import GateError, UsageError

if TYPE_CHECKING:
    from dipgo_deploy.verify import VerifyOptions


def verify(
    bundle: BundleFolder,
    images: Annotated[int | None, typer.Option(min=1, help="Trajectories to compare. Default: 4.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of their noise.")] = 1000,
    tokens: Annotated[int | None, typer.Option(min=1, help="Text length. Default: the usual one.")] = None,
    size: OneSize = None,
    guidance_scale: GuidanceScale = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Relative tolerance of one call. Default: 1e-4, in half precision 2e-2.")
    ] = None,
    min_psnr: Annotated[
        float | None, typer.Option(help="Gate: required median PSNR to the full run, in dB. Default: no gate.")
    ] = None,
    backend: Backend = "onnxruntime",
    device: Device = None,
    gpu_memory: GpuMemory = None,
    trust_engines: TrustEngines = False,
    own_model: OwnModel = None,
    once: Annotated[
        bool, typer.Option("--once", help="Compare one call per graph, not trajectories (for large models).")
    ] = False,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Compare with the images of another bundle instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify BUNDLE: does the program compute what the schedule says, and how near is the schedule to the full run?"""
    if backend == "torch":
        raise UsageError("--backend torch is the reference of every verification: choose onnxruntime, tensorrt or rtx")
    sizes = free_sizes(size, tokens)
    if against is not None and (once or tolerance is not None or sizes):
        raise UsageError("--against compares images of two bundles: leave --once, --tokens, --size and --tolerance out")
    if once:
        chosen = guidance_scale is not None or min_psnr is not None or bool(sizes)
        if chosen or backend != "onnxruntime" or device == "cuda":
            raise UsageError(
                "--once compares single calls on the CPU: leave --guidance-scale, --min-psnr, --tokens, --size, "
                "--backend and --device cuda out"
            )
        _verify_once(bundle, own_model, images or 1, seed, tolerance, as_json)
        return
    on_engines = backend != "onnxruntime"
    # Next to engines, --device is where PyTorch and ONNX Runtime run.
    run = run_options(backend, None if on_engines else device, gpu_memory=gpu_memory, trust_engines=trust_engines)
    from dipgo_deploy.cli.verify_view import verify_view
    from dipgo_deploy.verify import VerifyOptions, verify_bundle

    options = VerifyOptions(
        images=images or 4,
        seed=seed,
        sizes=sizes,
        guidance_scale=guidance_scale,
        local_tolerance=tolerance,
        min_psnr_db=min_psnr,
        run=run,
        reference_device=device,
    )
    if against is not None:
        _verify_against(bundle, against, own_model, options, as_json)
        return
    with working(f"verifying {bundle}"):
        report = verify_bundle(open_bundle(bundle, own_model, whole=True), options)
    if as_json:
        emit(report.document())
    else:
        result(verify_view(report))
    if not report.passed:
        raise GateError(report.failure)


def _verify_against(bundle: Path, other: Path, own_model: str | None, options: VerifyOptions, as_json: bool) -> None:
    from dataclasses import asdict

    from dipgo_deploy.cli.against_view import against_view
    from dipgo_deploy.verify import compare_bundles

    with working(f"comparing {bundle} with {other}"):
        first, second = (open_bundle(folder, own_model, whole=True) for folder in (bundle, other))
        comparison = compare_bundles(first, second, options)
    if as_json:
        emit({**asdict(comparison), "max_abs": comparison.max_abs, "psnr_db": comparison.psnr})
    else:
        result(against_view(comparison))
    median, least = comparison.psnr["p50"], options.min_psnr_db
    if least is not None and median < least:
        raise GateError(f"median PSNR of the two bundles is {median:.1f} dB, min_psnr_db is {least:g}: they differ")


def _verify_once(
    bundle: Path, own_model: str | None, images: int, seed: int, tolerance: float | None, as_json: bool
) -> None:
    from dipgo_deploy.cli.verify_view import once_view
    from dipgo_deploy.verify.graph_check import check_graphs
    from dipgo_deploy.verify.options import VerifyOptions, local_tolerance

    options = VerifyOptions(images=images, seed=seed, local_tolerance=tolerance)
    with working(f"verifying {bundle}"):
        loaded = open_bundle(bundle, own_model, whole=True)
        checks = list(check_graphs(loaded, images, seed=seed))
    allowed = local_tolerance(options, loaded.contract.dtype)
    worst = max(checks, key=lambda check: check.relative)
    passed = worst.relative <= allowed
    if as_json:
        checked = [{**vars(check), "passed": check.relative <= allowed} for check in checks]
        emit({"passed": passed, "tolerance": allowed, "checks": checked})
    else:
        result(once_view(checks, allowed))
    if not passed:
        raise GateError(
            f"{worst.graph} differs from PyTorch by {worst.relative:.1e} at {worst.output}, {allowed:g} is allowed: "
            "the fast path is not the slow one"
        )

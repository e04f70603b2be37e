"""``dipgo-deploy build-engine``: a TensorRT engine for every graph of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dipgo_deploy.cli.options import (
    Bf16,
    BundleFolder,
    Fp16,
    Json,
    OwnModel,
    TrustWeights,
    architectures,
    batch_range,
    byte_count,
    half_type,
    token_range,
)
from dipgo_deploy.cli.source import open_bundle
from dipgo_deploy.cli.terminal import emit, result, show_progress, working

if TYPE_CHECKING:
    from dipgo_deploy.bundle import Bundle
    from dipgo_deploy.engines import EngineOptions, EngineReport


def build_engine(
    bundle: BundleFolder,
    fp16: Fp16 = False,
    bf16: Bf16 = False,
    target: Annotated[
        Literal["tensorrt", "rtx"] | None,
        typer.Option(help="Library to build for. Default: the first that works here."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="SM,…", help="Architectures (sm86,sm89). Default: this machine's GPU.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="MIN-OPT-MAX", help="Images per call. Default: the contract's range.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="MIN-OPT-MAX", help="Text lengths. Default: the contract's range.")
    ] = None,
    static: Annotated[bool, typer.Option("--static", help="Fix batch and sizes at OPT.")] = False,
    level: Annotated[int | None, typer.Option(min=0, max=5, help="Effort of the builder.")] = None,
    workspace: Annotated[str | None, typer.Option(metavar="SIZE", help="Builder workspace, such as 4G.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Also run on later versions.")
    ] = False,
    hardware_compatible: Annotated[bool, typer.Option("--hardware-compatible", help="Also run on later GPUs.")] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Allow weights to stay in host memory.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Allow refitting with the same weights.")] = False,
    strip: Annotated[bool, typer.Option("--strip", help="Strip weights. Loading reads them from the bundle.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Engines to build in parallel.")] = 1,
    tolerance: Annotated[float | None, typer.Option(help="Relative tolerance of one graph in half precision.")] = None,
    check_images: Annotated[int, typer.Option(min=1, help="Images for the fp32 fallback search.")] = 2,
    check_steps: Annotated[int, typer.Option(min=1, help="Steps to probe per image.")] = 6,
    own_model: OwnModel = None,
    trust_weights: TrustWeights = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be built, and build nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Build engines for BUNDLE. Engines that are up to date are kept, and an interrupted build resumes."""
    from dipgo_deploy.trt.job import BuildFlags
    from dipgo_deploy.trt.target import load_target

    precision = half_type(fp16, bf16)
    flags = BuildFlags(
        level=level,
        workspace_bytes=None if workspace is None else byte_count(workspace),
        static=static,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        weight_streaming=weight_streaming,
        refit=refit,
        strip=strip,
    )
    gpus = () if gpu is None else architectures(gpu)
    images = None if batch is None else batch_range(batch)
    lengths = token_range(tokens)
    library = load_target(target)  # Checked before anything heavy is imported.
    library.check_gpus(gpus)
    library.check_refit(flags.refittable)
    from dipgo_deploy.engines import EngineOptions, build_bundle_engines
    from dipgo_deploy.engines.options import FallbackOptions

    options = EngineOptions(
        precision=precision,
        target=target,
        gpus=gpus,
        batch=images,
        tokens=lengths,
        flags=flags,
        workers=workers,
        fallback=FallbackOptions(images=check_images, steps=check_steps, tolerance=tolerance),
    )
    loaded = open_bundle(bundle, own_model, trust_weights=trust_weights)
    if dry_run:
        _print_dry_run(loaded, options, as_json)
        return
    _print(show_progress(build_bundle_engines(loaded, options), f"building engines of {bundle}"), as_json)


def _print_dry_run(bundle: Bundle, options: EngineOptions, as_json: bool) -> None:
    from dataclasses import asdict

    from dipgo_deploy.cli.engine_view import dry_run_view
    from dipgo_deploy.engines.estimate import dry_run

    with working(f"looking at {bundle.folder}"):
        estimate = dry_run(bundle, options)
    if as_json:
        emit({**asdict(estimate), "counts": estimate.counts})
        return
    for line in dry_run_view(estimate):
        result(line)


def _print(report: EngineReport, as_json: bool) -> None:
    from dataclasses import asdict

    from dipgo_deploy.cli.engine_view import engines_view

    if as_json:
        emit(
            {
                "folder": str(report.folder),
                "counts": report.counts,
                "precision": None if report.precision is None else asdict(report.precision),
                "engines": [asdict(record) for record in report.records],
            }
        )
        return
    for line in engines_view(report):
        result(line)

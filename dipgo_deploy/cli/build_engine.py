"""``dipgo-deploy build-engine``: a TensorRT engine for every graph of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dipgo_deploy.cli.options import Bf16, BundleFolder, Fp16, Json, OwnModel, half_type
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.cli.progress import watched
from dipgo_deploy.cli.source import open_bundle
from dipgo_deploy.cli.units import architectures, batch_range, byte_count

if TYPE_CHECKING:
    from dipgo_deploy.runtime.engine_options import EngineOptions
    from dipgo_deploy.runtime.engines import EngineReport
    from dipgo_deploy.runtime.loaded import LoadedBundle


def build_engine(
    bundle: BundleFolder,
    fp16: Fp16 = False,
    bf16: Bf16 = False,
    target: Annotated[
        Literal["tensorrt", "rtx"] | None, typer.Option(help="Library to build with; what is usable here if left out.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="SM,…", help="Architectures (sm86,sm89); this machine's GPU if left out.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="MIN-OPT-MAX", help="Images per call; the contract's range if left out.")
    ] = None,
    static: Annotated[bool, typer.Option("--static", help="Fix the batch at OPT.")] = False,
    level: Annotated[int | None, typer.Option(min=0, max=5, help="Effort of the builder.")] = None,
    workspace: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory for tactics, such as 4G.")] = None,
    version_compatible: Annotated[bool, typer.Option("--version-compatible", help="Run on later versions.")] = False,
    hardware_compatible: Annotated[bool, typer.Option("--hardware-compatible", help="Run on later GPUs.")] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Weights may stay in host memory.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Allow the same weights to be put in again.")] = False,
    strip: Annotated[
        bool, typer.Option("--strip", help="Leave weights out: a load reads them from the bundle.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Engines built at a time.")] = 1,
    tolerance: Annotated[
        float | None, typer.Option(help="Local deviation of half precision allowed, relative.")
    ] = None,
    check_images: Annotated[int, typer.Option(min=1, help="Images of the search for islands.")] = 2,
    check_steps: Annotated[int, typer.Option(min=1, help="Steps of each that are probed.")] = 6,
    own_model: OwnModel = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built, and build nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Build engines of BUNDLE; what stands already is kept, and an interrupted build goes on where it was."""
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
    usable = load_target(target)  # before anything heavy is imported
    usable.check_gpus(gpus)
    usable.check_refit(flags.refittable)
    from dipgo_deploy.runtime.engine_options import EngineOptions
    from dipgo_deploy.runtime.engines import build
    from dipgo_deploy.runtime.islands import IslandOptions

    options = EngineOptions(
        precision=precision,
        target=target,
        gpus=gpus,
        batch=images,
        flags=flags,
        workers=workers,
        islands=IslandOptions(images=check_images, steps=check_steps, tolerance=tolerance),
    )
    opened = open_bundle(bundle, own_model)
    if dry_run:
        _print_dry_run(opened, options, as_json)
        return
    last = watched(build(opened, options), lambda step: step[:2], f"building engines of {bundle}")
    report = last[2]
    assert report is not None
    _print(report, as_json)


def _print_dry_run(bundle: LoadedBundle, options: EngineOptions, as_json: bool) -> None:
    from dataclasses import asdict

    from dipgo_deploy.cli.engines_view import dry_run_view
    from dipgo_deploy.runtime.dry_run import dry_run

    with working(f"looking at {bundle.folder}"):
        found = dry_run(bundle, options)
    if as_json:
        emit({**asdict(found), "counts": found.counts})
        return
    for line in dry_run_view(found):
        result(line)


def _print(report: EngineReport, as_json: bool) -> None:
    from dataclasses import asdict

    from dipgo_deploy.cli.engines_view import engines_view

    if as_json:
        emit(
            {
                "folder": str(report.folder),
                "counts": report.counts,
                "foretold": dict(report.foretold),
                "note": report.note,
                "precision": None if report.precision is None else asdict(report.precision),
                "engines": [asdict(record) for record in report.records],
            }
        )
        return
    for line in engines_view(report):
        result(line)

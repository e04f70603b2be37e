"""``dipgo-deploy bench``: measure bundles next to the full model and plain samplers."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dipgo_deploy.cli.options import (
    Backend,
    Batch,
    Compile,
    CudaGraph,
    Device,
    GpuMemory,
    GuidanceScale,
    Json,
    OwnModel,
    TrustEngines,
    TrustWeights,
    run_options,
)
from dipgo_deploy.cli.replacing import Force, check_kind, check_picture_target, check_same
from dipgo_deploy.cli.source import open_bundle
from dipgo_deploy.cli.terminal import emit, result, say, show_progress, working


def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundle folders, all of one model and contract.")
    ],
    with_schedule: Annotated[
        list[Path] | None, typer.Option(help="Also bench this schedule.json of the same contract; may be repeated.")
    ] = None,
    batch: Batch = 8,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Quick first look: 16 images, 3 rounds, 100 converged calls. The report says so."),
    ] = False,
    repeats: Annotated[
        int | None, typer.Option(min=2, help="Timed rounds; each runs every contender once.  [default: 10]")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Images for the quality columns.  [default: 256]")
    ] = None,
    converged_images: Annotated[
        int | None, typer.Option(min=0, help="How many images to compare with the converged run.  [default: 64]")
    ] = None,
    converged_calls: Annotated[
        int | None, typer.Option(min=1, help="Network calls of the converged run.  [default: 1000]")
    ] = None,
    tuning_images: Annotated[
        int | None, typer.Option(min=1, help="Held-out images to tune the plain samplers on.  [default: 16]")
    ] = None,
    guidance_scale: GuidanceScale = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 1000,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads within an operator.")] = None,
    backend: Backend = "onnxruntime",
    device: Device = None,
    cuda_graph: CudaGraph = False,
    compile_: Compile = False,
    gpu_memory: GpuMemory = None,
    trust_engines: TrustEngines = False,
    trust_weights: TrustWeights = False,
    own_model: OwnModel = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON document to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw quality against latency, .png or .svg.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Bench BUNDLEs: latency, MACs and quality next to the full model and plain samplers, interleaved."""
    from dipgo_deploy.bench import QUICK, BenchOptions, load_report, table, to_json, write_report
    from dipgo_deploy.bench import bench as measure
    from dipgo_deploy.core.files import load_schedule

    _check_targets(out, plot, force)
    sizes = {
        "repeats": repeats,
        "images": images,
        "converged_images": converged_images,
        "converged_calls": converged_calls,
        "tuning_images": tuning_images,
    }
    options = replace(
        QUICK if quick else BenchOptions(),
        batch=batch,
        guidance_scale=guidance_scale,
        seed=seed,
        run=run_options(
            backend,
            device,
            threads=threads,
            cuda_graph=cuda_graph,
            compile_=compile_,
            gpu_memory=gpu_memory,
            trust_engines=trust_engines,
        ),
        command=shlex.join(["dipgo-deploy", *sys.argv[1:]]),
        **{name: size for name, size in sizes.items() if size is not None},
    )
    with working(f"loading {', '.join(map(str, bundles))}"):
        schedules = [(path.stem, load_schedule(path)) for path in with_schedule or ()]
        opened = [open_bundle(bundle, own_model, trust_weights=trust_weights) for bundle in bundles]
    if out is not None and out.exists() and not force:
        check_same(out, load_report(out).contract == opened[0].contract, "a bench of another contract", force)
    report = show_progress(measure(opened, options, schedules), "measuring")
    result(table(report))
    if out is not None:
        write_report(report, out)
        say(f"document in {out}")
    if plot is not None:
        from dipgo_deploy.bench.bench_picture import bench_picture

        bench_picture([report], plot, [] if out is None else [out.stem])
        say(f"picture in {plot}")
    if as_json:
        emit(to_json(report))


def _check_targets(out: Path | None, plot: Path | None, force: bool) -> None:
    """Before the work starts, refuse output files that cannot be written or that hold something else."""
    from dipgo_deploy.bench.figure import check_picture
    from dipgo_deploy.core.disk import check_target

    if plot is not None:
        check_picture(plot)
    for path in (out, plot):
        if path is not None:
            check_target(path)
    if plot is not None:
        check_picture_target(plot, force, "--plot")
    if out is not None:
        check_kind(out, "bench", force)

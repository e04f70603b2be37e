"""``dipgo-deploy bench``: measure bundles against the full model and plain samplers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    run_options,
)
from dipgo_deploy.cli.source import open_bundle
from dipgo_deploy.cli.terminal import emit, result, say, working

if TYPE_CHECKING:
    from dipgo_deploy.bench import BenchReport, Progress


def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Folders that export wrote, of one model and contract.")
    ],
    with_schedule: Annotated[
        list[Path] | None, typer.Option(help="Also bench this schedule.json of the same contract; may be repeated.")
    ] = None,
    batch: Batch = 8,
    repeats: Annotated[int, typer.Option(min=2, help="Timed rounds; each runs every contender once.")] = 10,
    images: Annotated[int, typer.Option(min=1, max=1_000_000, help="Images for the quality columns.")] = 256,
    converged_images: Annotated[int, typer.Option(min=0, help="How many of them meet the converged run.")] = 64,
    converged_calls: Annotated[int, typer.Option(min=1, help="Network calls of the converged run.")] = 1000,
    tuning_images: Annotated[int, typer.Option(min=1, help="Held-out images to tune the plain samplers on.")] = 16,
    guidance_scale: GuidanceScale = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 1000,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")] = None,
    backend: Backend = "onnxruntime",
    device: Device = None,
    cuda_graph: CudaGraph = False,
    compile_: Compile = False,
    gpu_memory: GpuMemory = None,
    trust_engines: TrustEngines = False,
    own_model: OwnModel = None,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON document to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw quality against latency, .png or .svg.")] = None,
    as_json: Json = False,
) -> None:
    """Bench BUNDLEs: latency, MACs and quality beside the full model and plain samplers, interleaved."""
    from dipgo_deploy.bench import BenchOptions, table, to_json, write_report
    from dipgo_deploy.bench import bench as measure
    from dipgo_deploy.core.files import load_schedule

    _check_targets(out, plot)
    run = run_options(
        backend, device, cuda_graph=cuda_graph, compile_=compile_, gpu_memory=gpu_memory, trust_engines=trust_engines
    )
    options = BenchOptions(
        batch=batch,
        repeats=repeats,
        images=images,
        converged_images=converged_images,
        converged_calls=converged_calls,
        tuning_images=tuning_images,
        guidance_scale=guidance_scale,
        seed=seed,
        threads=threads,
        command=shlex.join(["dipgo-deploy", *sys.argv[1:]]),
        device=run.device,
        backend=run.backend,
        cuda_graph=run.cuda_graph,
        compiler=run.compiler,
        gpu_memory=run.gpu_memory,
        trust_engines=run.trust_engines,
    )
    with working(f"measuring {', '.join(map(str, bundles))}"):
        schedules = [(path.stem, load_schedule(path)) for path in with_schedule or ()]
        report = _last(measure([open_bundle(bundle, own_model) for bundle in bundles], options, schedules))
    result(table(report))
    if out is not None:
        write_report(report, out)
        say(f"document in {out}")
    if plot is not None:
        from dipgo_deploy.bench.plot import bench_picture

        bench_picture([report], plot)
        say(f"picture in {plot}")
    if as_json:
        emit(to_json(report))


def _check_targets(out: Path | None, plot: Path | None) -> None:
    """Refuse what cannot be written before the work starts."""
    from dipgo_deploy.bench.canvas import check_picture
    from dipgo_deploy.core.disk import check_target

    if plot is not None:
        check_picture(plot)
    for path in (out, plot):
        if path is not None:
            check_target(path)


def _last(steps: Iterable[Progress | BenchReport]) -> BenchReport:
    """The report at the end of a bench; the name of each stage is said as it begins."""
    from dipgo_deploy.bench import BenchReport

    stage = ""
    for step in steps:
        if isinstance(step, BenchReport):
            return step
        if step.stage != stage:
            stage = step.stage
            say(f"  {stage}")
    raise AssertionError("a bench ends in its report")

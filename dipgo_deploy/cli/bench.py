"""``dipgo-deploy bench``: measure a bundle against the full model and plain samplers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipgo_deploy.cli.options import Batch, BundleFolder, GuidanceScale, Json
from dipgo_deploy.cli.output import emit, result, say, working

if TYPE_CHECKING:
    from dipgo_deploy.bench import BenchReport, Progress


def bench(
    bundle: BundleFolder,
    batch: Batch = 8,
    repeats: Annotated[int, typer.Option(min=2, help="Timed rounds; each runs every contender once.")] = 10,
    images: Annotated[int, typer.Option(min=1, help="Images for the quality columns.")] = 256,
    converged_images: Annotated[int, typer.Option(min=0, help="How many of them meet the converged run.")] = 64,
    converged_calls: Annotated[int, typer.Option(min=1, help="Network calls of the converged run.")] = 1000,
    tuning_images: Annotated[int, typer.Option(min=1, help="Held-out images to tune the plain samplers on.")] = 16,
    guidance: GuidanceScale = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 1000,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="Also write the JSON document to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Bench BUNDLE: latency, MACs and quality beside the full model and plain samplers, interleaved."""
    from dipgo_deploy.bench import BenchOptions, table, to_json, write_report
    from dipgo_deploy.bench import bench as measure
    from dipgo_deploy.core.files import check_target
    from dipgo_deploy.runtime import load_bundle

    if out is not None:
        check_target(out)
    options = BenchOptions(
        batch=batch,
        repeats=repeats,
        images=images,
        converged_images=converged_images,
        converged_calls=converged_calls,
        tuning_images=tuning_images,
        guidance_scale=guidance,
        seed=seed,
        threads=threads,
        device=device,
        command=shlex.join(["dipgo-deploy", *sys.argv[1:]]),
    )
    with working(f"measuring {bundle}"):
        report = _last(measure(load_bundle(bundle), options))
    result(table(report))
    if out is not None:
        write_report(report, out)
        say(f"document in {out}")
    if as_json:
        emit(to_json(report))


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

"""Calls that the stages make into bundle, engines, verify, runtime and bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.progress import Work
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.recipes.sections import ExportSection, PicturesSection, Recipe, TargetSection

if TYPE_CHECKING:
    from dipgo_deploy.bench import BenchReport
    from dipgo_deploy.bundle import Bundle
    from dipgo_deploy.engines import EngineOptions
    from dipgo_deploy.models import LoadedModel
    from dipgo_deploy.verify import VerifyReport

__all__ = [
    "build_engines",
    "check_target",
    "draw_images",
    "draw_schedule",
    "draw_scores",
    "export",
    "measure",
    "verify",
    "write_bench",
    "write_verification",
]


def export(model: LoadedModel, schedule: Schedule, bundle: Path, section: ExportSection) -> None:
    """Write the bundle of ``schedule`` to the folder ``bundle``."""
    from dipgo_deploy.bundle import ExportOptions
    from dipgo_deploy.bundle import export as export_bundle

    export_bundle(model, schedule, bundle, ExportOptions(section.layout, section.max_graphs, section.precision))


def check_target(name: str, section: TargetSection) -> str:
    """The library version and GPU architectures that a build for the target would use.

    Raises:
        MissingError: the target cannot be built here.
        UsageError: the library does not support an architecture.
    """
    from dipgo_deploy.trt.target import load_target

    target = load_target(section.library or name)
    gpus = target.check_gpus(section.gpus)
    target.check_refit(section.refit or section.strip)
    return f"{target.name} {target.version} for {', '.join(gpus)}"


def _engine_options(name: str, section: TargetSection) -> EngineOptions:
    from dipgo_deploy.engines import EngineOptions
    from dipgo_deploy.engines.options import FallbackOptions
    from dipgo_deploy.trt.job import BuildFlags

    return EngineOptions(
        precision=section.precision,
        target=section.library or name,
        gpus=section.gpus,
        batch=None if section.batch is None else BatchRange(*section.batch),
        flags=BuildFlags(
            level=section.level, workspace_bytes=section.workspace_bytes, static=section.static,
            version_compatible=section.version_compatible, hardware_compatible=section.hardware_compatible,
            weight_streaming=section.weight_streaming, refit=section.refit, strip=section.strip,
        ),
        workers=section.workers,
        fallback=FallbackOptions(section.check_images, steps=section.check_steps, tolerance=section.tolerance),
    )  # fmt: skip


def _open(bundle: Path, recipe: Recipe, *, whole: bool = False) -> Bundle:
    """The bundle, and the model if its class is the user's own."""
    from dipgo_deploy.bundle import load_bundle
    from dipgo_deploy.models.sources.python import is_python_name, model_from_python

    source = recipe.model.source
    if source is None or not is_python_name(source):
        return load_bundle(bundle, whole=whole)
    return load_bundle(bundle, whole=whole, model=model_from_python(source, "float32"))


def build_engines(bundle: Path, recipe: Recipe, name: str) -> Work[list[Path]]:
    """Build the engines of a bundle for the target ``name``. Returns the files of the engines and of their records."""
    from dipgo_deploy.engines import build_bundle_engines

    options = _engine_options(name, recipe.targets[name])
    report = yield from build_bundle_engines(_open(bundle, recipe), options)
    return sorted(path for path in report.folder.iterdir() if path.suffix in (".engine", ".json"))


def verify(bundle: Path, recipe: Recipe, on_engines: bool) -> VerifyReport:
    """Verify a bundle, on its engines if ``on_engines`` is set."""
    from dipgo_deploy.verify import VerifyOptions, verify_bundle

    section, run = recipe.verify, recipe.run
    options = VerifyOptions(
        images=section.images, seed=section.seed, guidance_scale=recipe.sampler.guidance_scale,
        local_tolerance=section.local_tolerance, min_psnr_db=section.min_psnr_db,
        run=run if on_engines or not run.on_engines else RunOptions(),
    )  # fmt: skip
    return verify_bundle(_open(bundle, recipe, whole=True), options)


def draw_schedule(schedule: Schedule, graph: BlockGraph, picture: Path) -> None:
    """Draw a schedule as blocks × steps."""
    from dipgo_deploy.bench.schedule_picture import schedule_picture

    schedule_picture(schedule, picture, graph)


def draw_scores(pruner: Path, schedule: Schedule, graph: BlockGraph, picture: Path) -> None:
    """Draw the learned scores of a pruner above its schedule."""
    from dipgo_deploy.bench.schedule_picture import schedule_picture
    from dipgo_deploy.search.dipgo.pruner_file import read_scores

    schedule_picture(schedule, picture, graph, read_scores(pruner))


def draw_images(bundle: Path, recipe: Recipe, section: PicturesSection, picture: Path) -> None:
    """Draw images of every class as one grid. Raises UsageError for latents that are not images."""
    from dipgo_deploy.bench.figure import image_grid
    from dipgo_deploy.runtime.generate import GenerateOptions, generate

    options = GenerateOptions(seed=section.seed, count=section.images, guidance_scale=recipe.sampler.guidance_scale)
    opened = _open(bundle, recipe)
    shape = opened.manifest.contract.latent_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"pictures.images cannot draw latents of shape {shape}: set pictures.images to 0")
    seeds, classes = options.images_of(opened.model.num_classes)
    prefixes = [f"class {label}\n" if opened.model.num_classes else "" for label in classes]
    labels = [f"{prefix}seed {seed}" for prefix, seed in zip(prefixes, seeds, strict=True)]
    image_grid(generate(opened, options), picture, columns=min(section.images, 16), labels=labels)


def measure(bundles: Sequence[Path], recipe: Recipe, command: str) -> Work[BenchReport]:
    """Bench the bundles."""
    from dipgo_deploy.bench import BenchOptions, bench

    options = BenchOptions(
        **asdict(recipe.bench), run=recipe.run, guidance_scale=recipe.sampler.guidance_scale, command=command
    )
    return (yield from bench([_open(bundle, recipe) for bundle in bundles], options))


def write_bench(report: BenchReport, document: Path, picture: Path | None) -> None:
    """Write the document of a bench, and a picture if requested."""
    from dipgo_deploy.bench import write_report
    from dipgo_deploy.bench.bench_picture import bench_picture

    write_report(report, document)
    if picture is not None:
        bench_picture([report], picture)


def write_verification(report: VerifyReport, document: Path) -> None:
    """Write the result of a verification as JSON."""
    content = {"format": "verification", "format_version": "1.0", **report.document()}
    write_atomic(document, json.dumps(content, indent=1, default=str) + "\n")

"""What the stages call of the other packages, a function each: the one place to change where one of them changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.files import load_latency_table
from dipgo_deploy.core.progress import Work
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.recipes.recipe import SHIPPED
from dipgo_deploy.recipes.sections import (
    ExportSection,
    ModelSection,
    PicturesSection,
    Recipe,
    SearchSection,
    TargetSection,
)

if TYPE_CHECKING:
    from dipgo_deploy.bench import BenchReport
    from dipgo_deploy.bundle import Bundle
    from dipgo_deploy.engines import EngineOptions
    from dipgo_deploy.models import LoadedModel
    from dipgo_deploy.search.options import SearchOptions
    from dipgo_deploy.verify import VerifyReport

__all__ = [
    "build_engines",
    "check_search",
    "check_target",
    "draw_images",
    "draw_schedule",
    "draw_scores",
    "export",
    "load_model",
    "measure",
    "model_files",
    "search",
    "start_pruner",
    "trace_blocks",
    "verify",
]

_MIB = 2**20
_METHOD_KEYS = ("interval", "depth", "candidates", "population", "trajectories", "iterations", "polish")
"""Keys of a schedule that belong to some methods."""

_OWN_CALLS = ("uniform",)
"""Methods that count calls themselves. For the others a budget of calls becomes a ratio."""


def load_model(section: ModelSection) -> LoadedModel:
    """The model of a recipe. Raises MissingError where random weights do not fit into the free memory."""
    from dipgo_deploy import models
    from dipgo_deploy.models.lora import with_loras
    from dipgo_deploy.models.lora_files import loras_from_texts

    if section.random_weights is not None:
        model = models.load_random(section.random_weights, dtype=section.dtype, device="meta")
        if not section.meta:
            _check_memory(model)
            model = models.load_random(section.random_weights, dtype=section.dtype)
    else:
        model = models.load_model(
            str(section.source), dtype=section.dtype, variant=section.variant, revision=section.revision,
            config=section.config, meta=section.meta,
        )  # fmt: skip
    if section.size is not None:
        model = model.with_latent_shape((*model.latent_shape[:-2], *section.size))
    return with_loras(model, loras_from_texts(section.loras))


def _check_memory(model: LoadedModel) -> None:
    from dipgo_deploy.supernet.memory import TRACE_MEMORY, free_host_bytes

    needed, free = int(TRACE_MEMORY * model.weight_bytes), free_host_bytes()
    if needed > free:
        raise MissingError(
            f"model.random_weights needs {needed // _MIB} MiB of memory, {free // _MIB} MiB are free: set "
            "model.meta to true and stop with --until search"
        )


def model_files(section: ModelSection) -> str:
    """A digest over name, size and time of the last change of the model's local files, "" where there are none.

    Weights of many GB are not read for it. Models of the hub and of the package are known by their name.
    """
    sources = [section.source, section.random_weights, section.config, *section.loras]
    lines = []
    for source in filter(None, sources):
        for path in sorted(_local_files(source)):
            status = path.stat()
            lines.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else ""


def _local_files(source: str) -> Iterable[Path]:
    path = Path(source)
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    if path.is_file():
        return [path]
    module, colon, _ = source.partition(":")
    spec = find_spec(module.partition(".")[0]) if colon and module.isidentifier() else None
    return [Path(spec.origin)] if spec is not None and spec.origin is not None else []


def trace_blocks(model: LoadedModel, section: SearchSection) -> BlockGraph:
    """The blocks of the model, divided as the schedule of ``section`` needs them."""
    from dipgo_deploy.graphs import trace

    return trace(model, granularity=section.granularity, patterns=section.blocks or None).blocks


def check_search(table: str, section: SearchSection) -> None:
    """Refuse keys of one schedule that do not fit its method.

    Raises:
        UsageError: the message begins with the name of the table.
    """
    try:
        _search_options(section, section.ratio or 0.0, None, None)
    except UsageError as error:
        raise UsageError(f"{table}: {error}; KEY= leaves a key out") from None


def _search_options(
    section: SearchSection, ratio: float, guidance_scale: float | None, pruner: Path | None
) -> SearchOptions:
    from dipgo_deploy.search import SearchOptions, method_options

    own = {name: getattr(section, name) for name in _METHOD_KEYS}
    if section.order != "bisection":
        own["order"] = section.order
    if section.pruner is not None or section.method == "dipgo":
        own["pruner"] = pruner or Path("pruner")  # the name does not matter to a check
    if section.method in _OWN_CALLS:
        own["calls"] = section.calls
    return SearchOptions(
        section.method, ratio, kind=section.kind, seed=section.seed,
        settings=method_options(section.method, section.preset, **own), granularity=section.granularity,
        patterns=section.blocks or None, images=section.images, classes=section.classes, prompts=section.prompts,
        guidance_scale=guidance_scale,
        latency=None if section.latency is None else load_latency_table(Path(section.latency)),
    )  # fmt: skip


def search(
    model: LoadedModel, graph: BlockGraph, recipe: Recipe, section: SearchSection, pruner: Path
) -> Work[Schedule]:
    """Search the schedule of ``section``.

    Args:
        model: the model of the recipe.
        graph: its blocks.
        recipe: for the sampler.
        section: what is searched.
        pruner: where method dipgo keeps its pruner. An existing file is continued, or made again if it does not fit.
    """
    from dipgo_deploy.models import make_contract
    from dipgo_deploy.search.run import search as search_model

    sampler = recipe.sampler
    contract = make_contract(model, sampler=sampler.name, steps=sampler.steps, guidance=sampler.guidance_layout)
    options = _search_options(section, _ratio(section, contract.sampler.calls), sampler.guidance_scale, pruner)
    try:
        return (yield from search_model(model, contract, options, blocks=graph))
    except InputError:
        if not pruner.exists() or section.pruner is not None:
            raise
        pruner.unlink()  # damaged, or of an older run with other keys
    return (yield from search_model(model, contract, options, blocks=graph))


def _ratio(section: SearchSection, calls: int) -> float:
    """The pruned share of MACs that the budget leaves."""
    if section.calls is None:
        return section.ratio or 0.0
    if section.calls > calls:
        raise UsageError(f"search.calls is {section.calls}, the full run makes {calls} calls: give at most {calls}")
    return 1 - section.calls / calls


def start_pruner(recipe: Recipe, section: SearchSection) -> Path | None:
    """The pruner that the search goes on from, None where it begins from nothing."""
    if section.pruner is None:
        return None
    if section.pruner != SHIPPED:
        return Path(section.pruner)
    from dipgo_deploy.search.dipgo.pruner_file import shipped_pruner

    return shipped_pruner(str(recipe.model.source))


def trained_iterations(pruner: Path) -> str:
    """How far the pruner in a file is trained, for a person."""
    from dipgo_deploy.search.dipgo.pruner_file import read_record

    record = read_record(pruner)
    return f"iteration {record.done} of {record.options.iterations}"


def export(model: LoadedModel, schedule: Schedule, bundle: Path, section: ExportSection) -> None:
    """Write the bundle of ``schedule`` to the folder ``bundle``."""
    from dipgo_deploy.bundle import ExportOptions
    from dipgo_deploy.bundle import export as export_bundle

    export_bundle(model, schedule, bundle, ExportOptions(section.layout, section.max_graphs, section.precision))


def check_target(name: str, section: TargetSection) -> str:
    """What engines of the target would be built by and for: version and architectures.

    Raises:
        MissingError: the target cannot be built here.
        UsageError: an architecture that the library does not build for.
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
    """The bundle, with the model where its class is the user's own."""
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
    """Verify a bundle, with its engines where ``on_engines``."""
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
    """Draw images of every class as one grid. Raises UsageError for latents that are no images."""
    from dipgo_deploy.bench.figure import image_grid
    from dipgo_deploy.runtime.generate import GenerateOptions, generate

    options = GenerateOptions(seed=section.seed, count=section.images, guidance_scale=recipe.sampler.guidance_scale)
    opened = _open(bundle, recipe)
    shape = opened.manifest.contract.latent_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"pictures.images draws no latents of shape {shape}: set pictures.images to 0")
    image_grid(generate(opened, options), picture, columns=min(section.images, 16))


def measure(bundles: Sequence[Path], recipe: Recipe, command: str) -> Work[BenchReport]:
    """Bench the bundles."""
    from dataclasses import asdict

    from dipgo_deploy.bench import BenchOptions, bench

    options = BenchOptions(
        **asdict(recipe.bench), run=recipe.run, guidance_scale=recipe.sampler.guidance_scale, command=command
    )
    return (yield from bench([_open(bundle, recipe) for bundle in bundles], options))


def write_bench(report: BenchReport, document: Path, picture: Path | None) -> None:
    """Write the document of a bench, and its picture where one is wanted."""
    from dipgo_deploy.bench import write_report
    from dipgo_deploy.bench.bench_picture import bench_picture

    write_report(report, document)
    if picture is not None:
        bench_picture([report], picture)


def write_verification(report: VerifyReport, document: Path) -> None:
    """Write what a verification found as JSON."""
    import json
    from dataclasses import asdict

    content = {"format": "verification", "format_version": "1.0", "passed": report.passed, **asdict(report)}
    write_atomic(document, json.dumps(content, indent=1, default=str) + "\n")

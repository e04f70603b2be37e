"""From a bundle to its engines: precision first, then a job for every graph, then the build and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock

from dipgo_deploy.core.amend import amend_manifest, drop_records
from dipgo_deploy.core.bundle import BUNDLE_FILE, BundleManifest
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.disk import path_inside
from dipgo_deploy.core.engine import ENGINES_FOLDER, EngineRecord
from dipgo_deploy.core.errors import GateError, InputError, UsageError
from dipgo_deploy.core.files import load_manifest
from dipgo_deploy.core.latency import MIB
from dipgo_deploy.core.precision import HalfType, PrecisionRecord, is_half
from dipgo_deploy.core.program import Program
from dipgo_deploy.graphs.trace import MASTER_FILE, cache_folder
from dipgo_deploy.graphs.untrusted import load_graphs
from dipgo_deploy.graphs.variant import load_variant, write_variant
from dipgo_deploy.runtime.foretold import job_bytes
from dipgo_deploy.runtime.generate import noise_for
from dipgo_deploy.runtime.islands import IslandOptions, find_islands
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.trt.build import BuildStep, build_engines, drop_stale
from dipgo_deploy.trt.job import BuildFlags, EngineJob, Machine, check_batch, program_jobs
from dipgo_deploy.trt.target import load_target

__all__ = [
    "EngineOptions",
    "EngineReport",
    "EngineSource",
    "build",
    "engine_jobs",
    "engine_source",
    "islands_note",
    "machine_for",
    "standing_variant",
]


@dataclass(frozen=True)
class EngineOptions:
    """What to build: ``precision`` None takes the bundle's own; ``batch`` None its contract's range.

    ``checked`` off leaves out the run that looks for infinite numbers in a bundle exported in half precision.
    """

    precision: HalfType | None = None
    target: str | None = None
    gpus: tuple[str, ...] = ()
    batch: BatchRange | None = None
    flags: BuildFlags = field(default_factory=BuildFlags)
    workers: int = 1
    islands: IslandOptions = field(default_factory=IslandOptions)
    checked: bool = True


@dataclass(frozen=True)
class EngineSource:
    """What engines are built from, and run as: a program, its ONNX files by graph and the weights behind them."""

    program: Program
    graphs: Mapping[str, Path]
    weights: Path


@dataclass(frozen=True)
class EngineReport:
    """The folder of the engines, what was done for each, and where half precision was converted its record.

    ``foretold`` are the bytes that each engine was expected to have; ``note`` says what a bundle exported in half
    precision cannot have.
    """

    folder: Path
    steps: tuple[BuildStep, ...]
    precision: PrecisionRecord | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    foretold: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def records(self) -> tuple[EngineRecord, ...]:
        """The record of every engine, by graph name."""
        return tuple(sorted((step.record for step in self.steps), key=lambda record: record.graph))


def build(
    bundle: LoadedBundle, options: EngineOptions = EngineOptions()
) -> Iterator[tuple[float, str, EngineReport | None]]:
    """Build the engines of ``bundle``; yields share done and a line, and in the end the report.

    Raises MissingError for a target that cannot be used here, GateError where half precision does not hold, InputError
    where a graph cannot be built, UsageError for options that do not fit the bundle.
    """
    machine = machine_for(bundle, options)
    note = islands_note(bundle, options)
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / hashlib.sha256(str(bundle.folder.absolute()).encode()).hexdigest()[:16]):
        record = None
        for line, prepared in _prepared(bundle, options):
            record = prepared
            yield 0.0, line, None
        source = engine_source(bundle, options.precision)
        jobs = engine_jobs(bundle, source, machine)
        foretold = job_bytes(bundle, jobs)
        yield 0.0, f"{sum(foretold.values()) / MIB:.1f} MiB of engines are foretold", None
        folder = Path(jobs[0].folder)
        steps: list[BuildStep] = []
        drop_records(bundle.folder, [folder])
        try:
            for step in build_engines(jobs, options.workers):
                steps.append(step)
                yield step.share, f"{step.record.graph} {step.outcome}", None
        finally:
            if folder.is_dir():
                drop_stale(folder, list(source.graphs))
                amend_manifest(bundle.folder, sorted(p for p in folder.iterdir() if p.suffix in (".engine", ".json")))
        counts = {kind: sum(step.outcome == kind for step in steps) for kind in ("kept", "copied", "built")}
        yield 1.0, "done", EngineReport(folder, tuple(steps), record, counts, foretold, note)


def machine_for(bundle: LoadedBundle, options: EngineOptions) -> Machine:
    """What ``options`` build for; raises as `build` does for a target, an architecture, a flag or a batch."""
    target = load_target(options.target)
    gpus = target.check_gpus(options.gpus)
    target.check_refit(options.flags.refit)
    return Machine(target, gpus, check_batch(bundle.manifest.contract, options.batch), options.flags)


def islands_note(bundle: LoadedBundle, options: EngineOptions) -> str:
    """What to say where half precision has no search for islands: it judges by float32 weights, which are gone.

    Raises UsageError for a tolerance where nothing is searched.
    """
    own, wanted = bundle.manifest.contract.dtype, options.precision or bundle.manifest.contract.dtype
    if options.islands.tolerance is not None and (own != "float32" or wanted == "float32"):
        raise UsageError(
            f"--tolerance is for the search for islands, and a bundle in {own} built in {wanted} has none: leave it "
            f"out, or {'build with --fp16 or --bf16' if own == 'float32' else 'export in float32'}"
        )
    if own == "float32":
        return ""
    return (
        f"{own} as exported, without a search for islands, which needs float32 weights: for one, export in float32 and "
        f"build with {'--fp16' if own == 'float16' else '--bf16'}"
    )


def engine_source(bundle: LoadedBundle, precision: HalfType | None) -> EngineSource:
    """The program and graphs of a precision as they stand in the bundle, checked as untrusted input.

    Raises InputError where the bundle has no such variant, UsageError where it can have none.
    """
    own = bundle.manifest.contract.dtype
    if precision in (None, own):
        graphs = {name: path_inside(bundle.folder, path) for name, path in bundle.manifest.graphs.items()}
        return EngineSource(bundle.program, graphs, bundle.weights)
    if own != "float32":
        raise UsageError(f"the bundle is in {own}, {precision} is wanted: export it in float32, or build as it is")
    assert precision is not None
    variant = load_variant(bundle.folder, bundle.denoiser, precision)
    load_graphs(variant.graphs.items(), variant.weights)
    return EngineSource(variant.program, variant.graphs, variant.weights)


def engine_jobs(bundle: LoadedBundle, source: EngineSource, machine: Machine) -> list[EngineJob]:
    """A job for every graph of ``source``, in the bundle's folder of such engines."""
    place = f"{bundle.manifest.denoiser}/{ENGINES_FOLDER}/{machine.folder}"
    folder = path_inside(bundle.folder, place, links=False)
    digests = _digests(load_manifest(bundle.folder / BUNDLE_FILE))
    weights = digests[source.weights.relative_to(bundle.folder).as_posix()]
    return program_jobs(source.program, source.graphs, weights, machine, folder)


def _digests(manifest: BundleManifest) -> dict[str, str]:
    return {record.path: record.sha256 for record in manifest.files}


def _prepared(bundle: LoadedBundle, options: EngineOptions) -> Iterator[tuple[str, PrecisionRecord | None]]:
    """Make the asked precision stand in the bundle; yields what is done, and the record where there is one."""
    own, wanted = bundle.manifest.contract.dtype, options.precision
    bundle.compiled  # noqa: B018 - checks the graphs as untrusted input
    if wanted in (None, own) or own != "float32":
        if is_half(own) and options.checked:
            yield "running the schedule once", None
            _check_finite(bundle)
        return
    assert wanted is not None
    standing = standing_variant(bundle, options)
    if standing is not None:
        yield "the half-precision graphs stand", standing
        return
    digest = _source_digest(bundle, options)
    record = None
    for line, found in find_islands(bundle, wanted, digest, options.islands):
        record = found
        yield line, None
    assert record is not None
    islands = {*record.fixed, *(node for island in record.islands for node in island.nodes)}
    yield "writing half-precision graphs and weights", None
    write_variant(bundle.folder, bundle.denoiser, bundle.blocks, bundle.schedule, bundle.program, record, islands)
    yield "half-precision graphs written", record


def standing_variant(bundle: LoadedBundle, options: EngineOptions) -> PrecisionRecord | None:
    """The record of the half-precision variant that stands whole and is that of ``options``; else None."""
    assert options.precision is not None
    try:
        record = load_variant(bundle.folder, bundle.denoiser, options.precision).record
    except InputError:
        return None
    return record if record.source == _source_digest(bundle, options) else None


def _source_digest(bundle: LoadedBundle, options: EngineOptions) -> str:
    """sha256 over all that an island search depends on."""
    digests = _digests(bundle.manifest)
    weights = bundle.weights.relative_to(bundle.folder).as_posix()
    names = (f"{bundle.manifest.denoiser}/{MASTER_FILE}", weights, "schedule.json", "program.json")
    text = json.dumps([options.precision, asdict(options.islands), *(digests[name] for name in names)])
    return hashlib.sha256(text.encode()).hexdigest()


def _check_finite(bundle: LoadedBundle) -> None:
    contract = bundle.manifest.contract
    session = bundle.session(contract.batch.min, guidance_scale=contract.guidance_scale(None))
    noise = noise_for(range(contract.batch.min), contract.latent_shape)
    given = bundle.model.conditioning([0] * contract.batch.min, contract.guidance)
    if not np.isfinite(session.run(noise, given)).all():
        raise GateError(
            f"the bundle, exported in {contract.dtype}, gives numbers that are not finite: export it in float32 and "
            "build with --fp16, which finds the nodes that must stay in float32"
        )

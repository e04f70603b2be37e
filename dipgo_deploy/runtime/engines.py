"""From a bundle to its engines: precision first, then a job for every graph, then the build and the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from dipgo_deploy.core.amend import amend_manifest, drop_records
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.disk import path_inside
from dipgo_deploy.core.engine import ENGINES_FOLDER, EngineRecord
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.files import load_manifest
from dipgo_deploy.core.latency import MIB
from dipgo_deploy.core.precision import HalfType, PrecisionRecord
from dipgo_deploy.core.program import Program
from dipgo_deploy.graphs.trace import cache_folder
from dipgo_deploy.graphs.untrusted import load_graphs
from dipgo_deploy.graphs.variant import Variant, load_variant
from dipgo_deploy.runtime.engine_options import EngineOptions
from dipgo_deploy.runtime.foretold import job_bytes
from dipgo_deploy.runtime.half_export import own_variant
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.runtime.preparation import planned, prepared
from dipgo_deploy.trt.build import BuildStep, build_engines, drop_stale
from dipgo_deploy.trt.job import EngineJob, check_batch
from dipgo_deploy.trt.program_jobs import Machine, program_jobs
from dipgo_deploy.trt.target import load_target

__all__ = [
    "EngineReport",
    "EngineSource",
    "build",
    "engine_jobs",
    "engine_source",
    "machine_for",
]


@dataclass(frozen=True)
class EngineSource:
    """What engines are built from, and run as: a program, its ONNX files by graph and the weights behind them.

    ``variant`` is that of a half precision, where it is one.
    """

    program: Program
    graphs: Mapping[str, Path]
    weights: Path
    variant: Variant | None = None


@dataclass(frozen=True)
class EngineReport:
    """The folder of the engines, what was done for each, and where half precision was searched its record.

    ``foretold`` are the bytes that each engine was expected to have; ``note`` says what a bundle exported in half
    precision could not have here.
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


def build(bundle: LoadedBundle, options: EngineOptions) -> Iterator[tuple[float, str, EngineReport | None]]:
    """Build the engines of ``bundle``; yields share done and a line, and in the end the report.

    Raises MissingError for a target that cannot be used here, GateError where half precision does not hold, InputError
    where a graph cannot be built, UsageError for options that do not fit the bundle.
    """
    machine = machine_for(bundle, options)
    preparation = planned(bundle, options)
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / hashlib.sha256(str(bundle.folder.absolute()).encode()).hexdigest()[:16]):
        record = None
        for line, found in prepared(bundle, options, preparation):
            record = found
            yield 0.0, line, None
        source = engine_source(bundle, options.precision)
        jobs = engine_jobs(bundle, source, machine)
        foretold = job_bytes(bundle, jobs, source.variant)
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
        yield 1.0, "done", EngineReport(folder, tuple(steps), record, counts, foretold, preparation.note)


def machine_for(bundle: LoadedBundle, options: EngineOptions) -> Machine:
    """What ``options`` build for; raises as `build` does for a target, an architecture, a flag or a batch."""
    target = load_target(options.target)
    gpus = target.check_gpus(options.gpus)
    target.check_refit(options.flags.refittable)
    return Machine(target, gpus, check_batch(bundle.manifest.contract, options.batch), options.flags)


def engine_source(bundle: LoadedBundle, precision: HalfType | None) -> EngineSource:
    """The program and graphs of a precision as they stand in the bundle, checked as untrusted input.

    Raises InputError where the bundle has no such variant, UsageError where it can have none.
    """
    own = bundle.manifest.contract.dtype
    variant: Variant | None
    if precision in (None, own):
        if (variant := own_variant(bundle)) is not None:
            return _checked_source(variant)
        graphs = {name: path_inside(bundle.folder, path) for name, path in bundle.manifest.graphs.items()}
        return EngineSource(bundle.program, graphs, bundle.weights)
    if own != "float32":
        raise UsageError(f"the bundle is in {own}, {precision} is wanted: export it in float32, or build as it is")
    assert precision is not None
    return _checked_source(load_variant(bundle.folder, bundle.denoiser, precision))


def _checked_source(variant: Variant) -> EngineSource:
    load_graphs(variant.graphs.items(), variant.weights)
    return EngineSource(variant.program, variant.graphs, variant.weights, variant)


def engine_jobs(bundle: LoadedBundle, source: EngineSource, machine: Machine) -> list[EngineJob]:
    """A job for every graph of ``source``, in the bundle's folder of such engines."""
    place = f"{bundle.manifest.denoiser}/{ENGINES_FOLDER}/{machine.folder}"
    folder = path_inside(bundle.folder, place, links=False)
    digests = load_manifest(bundle.folder / BUNDLE_FILE).digests
    weights = digests[source.weights.relative_to(bundle.folder).as_posix()]
    return program_jobs(source.program, source.graphs, weights, machine, folder)

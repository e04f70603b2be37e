"""From a bundle to its engines: the precision first, then a job for every graph, then the build and the manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from filelock import FileLock

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.half_precision import GraphSource, graph_source
from dipgo_deploy.bundle.manifest import add_records, drop_records
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.disk import cache_folder, path_inside
from dipgo_deploy.core.engine import ENGINES_FOLDER, EngineRecord
from dipgo_deploy.core.files import load_manifest
from dipgo_deploy.core.precision import PrecisionRecord, is_half
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.engines.options import EngineOptions
from dipgo_deploy.engines.precision import check_finite, ensure_precision, precision_status
from dipgo_deploy.trt.build import BuildStatus, BuiltEngine, build_engines, drop_stale, find_up_to_date
from dipgo_deploy.trt.job import EngineJob, check_batch, check_tokens
from dipgo_deploy.trt.program_jobs import Machine, program_jobs
from dipgo_deploy.trt.target import load_target

__all__ = ["EngineReport", "build_bundle_engines", "engine_jobs", "machine_for"]


@dataclass(frozen=True)
class EngineReport:
    """The engines of one build.

    Attributes:
        folder: the folder of the engines.
        engines: record and build status of each.
        precision: the result of the search for fallback nodes. None for the bundle's own dtype.
    """

    folder: Path
    engines: tuple[BuiltEngine, ...]
    precision: PrecisionRecord | None = None

    @property
    def records(self) -> tuple[EngineRecord, ...]:
        """The record of every engine, in the order of the graphs' names."""
        return tuple(sorted((engine.record for engine in self.engines), key=lambda record: record.graph))

    @property
    def counts(self) -> Mapping[BuildStatus, int]:
        """Number of engines by build status."""
        counter = Counter(engine.status for engine in self.engines)
        return {status: counter[status] for status in get_args(BuildStatus)}


def build_bundle_engines(bundle: Bundle, options: EngineOptions) -> Work[EngineReport]:
    """Build the engines of ``bundle`` and record them in its manifest.

    Args:
        bundle: the bundle. Its folder is written to.
        options: what to build.

    Returns:
        The engines. The generator yields Progress.

    Raises:
        MissingError: the target cannot be used here.
        GateError: half precision does not hold the tolerance, or a number is not finite.
        InputError: a graph cannot be built.
        UsageError: options that do not fit the bundle.
    """
    machine = machine_for(bundle, options)
    precision_status(bundle, options.precision, options.fallback)  # Refuses bad options before the lock is taken.
    path_inside(bundle.folder, bundle.manifest.denoiser, links=False)  # Refuses to write elsewhere.
    with FileLock(_lock_file(bundle)):
        record = yield from ensure_precision(bundle, options.precision, options.fallback)
        source = graph_source(bundle, options.precision)
        jobs = engine_jobs(bundle, source, machine)
        if options.check_finite and is_half(bundle.contract.dtype) and not _are_up_to_date(jobs):
            yield Progress("half precision", 0, 1, "running the schedule once")
            check_finite(bundle)
        folder = Path(jobs[0].folder)
        drop_records(bundle.folder, [folder])
        try:
            engines = yield from build_engines(jobs, options.workers)
        finally:
            # An interrupted build records the engines that it finished, so that the next one goes on from there.
            if folder.is_dir():
                drop_stale(folder, list(source.graphs))
                add_records(bundle.folder, sorted(p for p in folder.iterdir() if p.suffix in (".engine", ".json")))
    return EngineReport(folder, engines, record)


def _are_up_to_date(jobs: Sequence[EngineJob]) -> bool:
    return all(find_up_to_date(job) == "up to date" for job in jobs)


def _lock_file(bundle: Bundle) -> Path:
    """One lock for each bundle folder, outside the bundle."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / hashlib.sha256(str(bundle.folder.resolve()).encode()).hexdigest()[:16]


def machine_for(bundle: Bundle, options: EngineOptions) -> Machine:
    """The machine that engines are built for.

    Args:
        bundle: limits the batch.
        options: target, architectures, batch and flags.

    Returns:
        The machine, with the defaults of this computer filled in.

    Raises:
        MissingError: the target cannot be used here.
        UsageError: an unknown architecture, or a batch or text length outside the contract.
    """
    target = load_target(options.target)
    gpus = target.check_gpus(options.gpus)
    target.check_refit(options.flags.refittable)
    batch, sizes = check_batch(bundle.contract, options.batch), check_tokens(bundle.contract, options.tokens)
    return Machine(target, gpus, batch, options.flags, sizes)


def engine_jobs(bundle: Bundle, source: GraphSource, machine: Machine) -> list[EngineJob]:
    """A job for every graph.

    Args:
        bundle: the bundle that will hold the engines.
        source: the graphs in the precision to build.
        machine: the machine to build for.

    Returns:
        The jobs, in the order of the program's graphs.

    Raises:
        InputError: the folder of the engines is a link, or lies outside the bundle.
    """
    place = f"{bundle.manifest.denoiser}/{ENGINES_FOLDER}/{machine.folder}"
    folder = path_inside(bundle.folder, place, links=False)
    digests = load_manifest(bundle.folder / BUNDLE_FILE).digests
    weights_digest = digests[source.weights.relative_to(bundle.folder).as_posix()]
    return program_jobs(source.program, source.graphs, weights_digest, machine, folder)

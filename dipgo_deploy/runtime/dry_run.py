"""What a build of engines would do, found without building, converting or writing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.runtime.engine_options import EngineOptions
from dipgo_deploy.runtime.engines import engine_jobs, engine_source, machine_for
from dipgo_deploy.runtime.foretold import foretell, job_bytes
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.runtime.preparation import planned
from dipgo_deploy.trt.build import Outcome, engine_path, standing
from dipgo_deploy.trt.job import EngineJob
from dipgo_deploy.trt.program_jobs import Machine
from dipgo_deploy.trt.sizes import size_fit

__all__ = ["DryRun", "WantedEngine", "dry_run"]


@dataclass(frozen=True)
class WantedEngine:
    """An engine that a build would make stand, and what would become of it.

    ``digest`` is None where the graph is not made yet; ``engine_bytes`` are those of the record where one ``exists``,
    else foretold.
    """

    graph: str
    digest: str | None
    outcome: Outcome
    weight_bytes: int
    engine_bytes: int
    exists: bool


@dataclass(frozen=True)
class DryRun:
    """The name of the engines' folder, every engine, and whether half-precision graphs would be made before.

    ``note`` is that of an EngineReport, or says that a search for islands may change the graphs.
    """

    folder: str
    engines: tuple[WantedEngine, ...]
    converts: bool
    note: str

    @property
    def counts(self) -> Mapping[str, int]:
        """Engines by outcome."""
        outcomes = [engine.outcome for engine in self.engines]
        return {kind: outcomes.count(kind) for kind in ("kept", "copied", "built")}  # type: ignore[arg-type]


def dry_run(bundle: LoadedBundle, options: EngineOptions) -> DryRun:
    """What `build` with the same options would do; raises as it does before it builds anything."""
    machine = machine_for(bundle, options)
    preparation, wanted = planned(bundle, options), options.precision
    note = preparation.note
    if preparation.action == "search":
        if bundle.manifest.contract.dtype == "float32":
            return DryRun(machine.folder, tuple(_unmade(bundle, wanted, machine)), True, note)
        note = "a search for islands comes first, and may change these graphs"
    source = engine_source(bundle, wanted)
    jobs = engine_jobs(bundle, source, machine)
    sizes = job_bytes(bundle, jobs, source.variant)
    return DryRun(machine.folder, tuple(_wanted(job, sizes[job.graph]) for job in jobs), False, note)


def _wanted(job: EngineJob, size: int) -> WantedEngine:
    found = standing(job)
    if found is None:
        return WantedEngine(job.graph, job.digest, "built", job.weight_bytes, size, False)
    outcome: Outcome = "copied" if isinstance(found, Path) else "kept"
    path = found if isinstance(found, Path) else engine_path(job)
    record = load_engine_record(path.with_suffix(".json"))
    return WantedEngine(job.graph, job.digest, outcome, job.weight_bytes, record.bytes, True)


def _unmade(bundle: LoadedBundle, precision: HalfType | None, machine: Machine) -> list[WantedEngine]:
    """Engines of graphs that are still to be converted: their digests are not known, their sizes are."""
    foretold = foretell(bundle, bundle.program.layout, precision)
    fit = size_fit(machine.target.name, precision or "", machine.target.version)
    sizes = foretold.engine_bytes(fit, not machine.flags.static, has_weights=not machine.flags.strip)
    return [
        WantedEngine(one.name, None, "built", one.weight_bytes, sizes[one.name], False)
        for one in foretold.program.graphs
    ]

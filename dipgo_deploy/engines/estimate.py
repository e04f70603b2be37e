"""Estimate the sizes of engines that are not built yet, and what a build would do.

The estimate is the weights of the graph plus a constant for every node. On Stable Diffusion 1.5 the estimate is within
1 % of the built engines, because weights dominate. An estimate for an engine of a few MB may be off by half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.half_precision import graph_source
from dipgo_deploy.core.engine import TargetName
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.core.tensors import MIB
from dipgo_deploy.engines.build import engine_jobs, machine_for
from dipgo_deploy.engines.options import EngineOptions
from dipgo_deploy.engines.precision import precision_status
from dipgo_deploy.graphs.macs import node_count
from dipgo_deploy.trt.build import BuildStatus, engine_path, find_up_to_date
from dipgo_deploy.trt.job import EngineJob

__all__ = [
    "BYTES_PER_NODE",
    "WORKSPACE_BYTES",
    "DryRun",
    "EngineEstimate",
    "dry_run",
    "estimated_engine_bytes",
]

BYTES_PER_NODE: Mapping[TargetName, int] = {"rtx": 12_000, "tensorrt": 0}
"""Bytes of code in an engine for every node of its graph.

A least-squares fit over 138 engines of TensorRT for RTX 1.7. Half precision alone would give 10,204 for static engines
and 12,392 with a profile, float32 14,834. No engine of TensorRT itself could be measured yet.
"""

WORKSPACE_BYTES = 8 * MIB
"""Device memory that a context of TensorRT for RTX takes in addition to the values of its graph."""


@dataclass(frozen=True)
class EngineEstimate:
    """An engine that a build would bring up to date.

    Attributes:
        graph: name of the graph.
        digest: of the engine. None where half-precision graphs have to be made first.
        status: what the build would do.
        weight_bytes: weights of the graph.
        engine_bytes: size of the engine: measured where ``is_measured``, otherwise estimated.
        is_measured: whether an engine of that digest exists.
    """

    graph: str
    digest: str | None
    status: BuildStatus
    weight_bytes: int
    engine_bytes: int
    is_measured: bool


@dataclass(frozen=True)
class DryRun:
    """What a build would do.

    Attributes:
        folder: name of the folder of the engines.
        engines: every engine with its build status and size.
        searches: whether a search for fp32 fallback nodes would come first.
    """

    folder: str
    engines: tuple[EngineEstimate, ...]
    searches: bool

    @property
    def counts(self) -> Mapping[BuildStatus, int]:
        """Number of engines by build status."""
        counter = Counter(engine.status for engine in self.engines)
        return {status: counter[status] for status in get_args(BuildStatus)}


def estimated_engine_bytes(graph: bytes, weight_bytes: int, target: TargetName) -> int:
    """The size of an engine that is not built yet.

    Args:
        graph: the serialized ONNX graph.
        weight_bytes: weights that the engine will hold. 0 for an engine without weights.
        target: the library.

    Returns:
        Estimated bytes: weights and a constant for every node.
    """
    return weight_bytes + BYTES_PER_NODE[target] * node_count(graph)


def dry_run(bundle: Bundle, options: EngineOptions) -> DryRun:
    """What ``build_bundle_engines`` would do with the same options. Nothing is built or written.

    Args:
        bundle: the bundle.
        options: what to build.

    Returns:
        The status and size of every engine.

    Raises:
        MissingError: the target cannot be used here.
        UsageError: options that do not fit the bundle.
        InputError: the bundle is damaged.
    """
    machine = machine_for(bundle, options)
    target, flags = machine.target.name, machine.flags
    if precision_status(bundle, options.precision, options.fallback).action == "search":
        # Half precision halves the weights. Fallback nodes, which keep some of them whole, are not known yet.
        halved = {graph.name: graph.weight_bytes // 2 for graph in bundle.program.graphs}
        sizes = {name: 0 if flags.strip else size for name, size in halved.items()}
        graphs = bundle.compiled.graphs
        engines = tuple(
            EngineEstimate(name, None, "built", halved[name], estimated_engine_bytes(graphs[name], size, target), False)
            for name, size in sizes.items()
        )
        return DryRun(machine.folder, engines, True)
    source = graph_source(bundle, options.precision)
    jobs = engine_jobs(bundle, source, machine)
    return DryRun(machine.folder, tuple(map(_estimate, jobs)), False)


def _estimate(job: EngineJob) -> EngineEstimate:
    existing = find_up_to_date(job)
    if existing is None:
        weights = 0 if job.flags.strip else job.weight_bytes
        size = estimated_engine_bytes(Path(job.onnx).read_bytes(), weights, job.target)
        return EngineEstimate(job.graph, job.digest, "built", job.weight_bytes, size, False)
    status: BuildStatus = "copied" if isinstance(existing, Path) else "up to date"
    path = existing if isinstance(existing, Path) else engine_path(job)
    record = load_engine_record(path.with_suffix(".json"))
    return EngineEstimate(job.graph, job.digest, status, job.weight_bytes, record.bytes, True)

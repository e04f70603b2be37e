"""One engine to build: everything that decides the result, and the digest over it.

The process that builds imports this, and starts in a tenth of the time for not importing PyTorch with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from dipgo_deploy.core.contract import BatchRange, Contract
from dipgo_deploy.core.engine import ProfileRange, TargetName
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.program import TIMESTEP, Program
from dipgo_deploy.core.tensors import TensorSpec

__all__ = [
    "BuildFlags",
    "EngineJob",
    "check_batch",
    "graph_tensors",
    "job_from_json",
    "job_to_json",
    "profile_of",
]


@dataclass(frozen=True)
class BuildFlags:
    """How the library builds.

    ``level`` 0 to 5 is its effort, ``workspace_bytes`` the memory that tactics may use; None leaves both to it.
    ``static`` fixes the batch at its ``opt``. ``version_compatible`` engines run on later versions,
    ``hardware_compatible`` ones on later GPUs; ``weight_streaming`` lets weights stay in host memory; ``refit`` allows
    the same weights to be put in again (REFIT_IDENTICAL). ``strip`` leaves the weights out, to be put in from the
    graph's own file whenever the engine is loaded: they then stand on disk once, whatever engines are built.
    """

    level: int | None = None
    workspace_bytes: int | None = None
    static: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    weight_streaming: bool = False
    refit: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.level is not None and not 0 <= self.level <= 5:
            raise UsageError(f"builder level {self.level} does not exist: choose 0 to 5")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"a workspace of {self.workspace_bytes} bytes is none: give more, or leave it out")

    @property
    def refittable(self) -> bool:
        """Whether weights can be put into a built engine."""
        return self.refit or self.strip

    @property
    def names(self) -> tuple[str, ...]:
        """What differs from the default, as ``name`` or ``name=value``."""
        given = {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        return tuple(name if value is True else f"{name}={value}" for name, value in given.items())


@dataclass(frozen=True)
class EngineJob:
    """A graph, its place, and what to make of it; ``profile`` and ``dtypes`` go by tensor name.

    ``onnx`` and ``folder`` are paths; ``timing_cache`` is the path of the cache that builds share.
    """

    graph: str
    onnx: str
    folder: str
    timing_cache: str
    target: TargetName
    version: str
    gpus: tuple[str, ...]
    precision: str
    flags: BuildFlags
    batch: BatchRange
    profile: Mapping[str, ProfileRange]
    dtypes: Mapping[str, str]
    graph_digest: str
    weights_digest: str
    weight_bytes: int

    @property
    def digest(self) -> str:
        """sha256 over graph, weights, target, version, GPUs, flags and profile; names and places do not count."""
        decides = [self.graph_digest, self.weights_digest, self.target, self.version, self.gpus, asdict(self.flags)]
        shapes = {name: asdict(self.profile[name]) for name in sorted(self.profile)}
        return hashlib.sha256(json.dumps([*decides, shapes], sort_keys=True).encode()).hexdigest()


def graph_tensors(program: Program) -> dict[str, dict[str, TensorSpec]]:
    """By graph, the spec of every tensor that some run binds, by the graph's own name for it; and of the timestep."""
    slots = {slot.name: slot for slot in program.slots}
    found: dict[str, dict[str, TensorSpec]] = {graph.name: {} for graph in program.graphs}
    for graph in program.graphs:
        if TIMESTEP in graph.inputs:
            found[graph.name][TIMESTEP] = TensorSpec(TIMESTEP, ("rows",), "float32")
    for run in program.runs:
        found[run.graph] |= {name: slots[slot] for name, slot in (*run.inputs, *run.outputs)}
    return found


def check_batch(contract: Contract, batch: BatchRange | None) -> BatchRange:
    """The batch range to build for; UsageError where it is not ordered or leaves the contract's."""
    asked, allowed = batch or contract.batch, contract.batch
    if not allowed.min <= asked.min <= asked.opt <= asked.max <= allowed.max:
        raise UsageError(
            f"a batch of {asked.min}-{asked.opt}-{asked.max} does not lie in order within the contract's "
            f"{allowed.min} to {allowed.max} images: give MIN-OPT-MAX within it"
        )
    return asked


def profile_of(contract: Contract, batch: BatchRange, spec: TensorSpec) -> ProfileRange:
    """Smallest, usual and largest shape of an input."""
    low, usual, high = (spec.resolve(contract.sizes(images)) for images in (batch.min, batch.opt, batch.max))
    return ProfileRange(low, usual, high)


def job_to_json(job: EngineJob) -> str:
    """A job as one line, for another process."""
    return TypeAdapter(EngineJob).dump_json(job).decode()


def job_from_json(text: str) -> EngineJob:
    """The job that `job_to_json` wrote."""
    return TypeAdapter(EngineJob).validate_json(text)

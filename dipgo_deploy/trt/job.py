"""An engine job: everything that decides how one engine is built, and the digest over it.

The worker process imports this module. Without PyTorch and ONNX a worker starts in a tenth of the time.
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
from dipgo_deploy.core.tensors import TOKENS, SizeRange, TensorSpec

__all__ = [
    "BuildFlags",
    "EngineJob",
    "check_batch",
    "check_tokens",
    "graph_tensors",
    "job_from_json",
    "job_to_json",
    "profile_of",
]


@dataclass(frozen=True)
class BuildFlags:
    """How the library builds an engine.

    Attributes:
        level: effort of the builder, 0 to 5. None leaves the choice to the library.
        workspace_bytes: memory that tactics may use. None leaves the choice to the library.
        static: fix the batch and every other size at ``opt``.
        version_compatible: the engine runs on later versions of the library.
        hardware_compatible: the engine runs on later GPUs.
        weight_streaming: weights may stay in host memory.
        refit: the same weights may be put in again (REFIT_IDENTICAL).
        strip: leave the weights out. Every load puts them in from the graph's own file, so that the disk holds the
            weights only once.

    Raises:
        UsageError: a level or workspace that does not exist.
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
            raise UsageError(f"level must be 0 to 5, got {self.level}")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"workspace_bytes must be at least 1, got {self.workspace_bytes}")

    @property
    def refittable(self) -> bool:
        """Whether weights can be put into a built engine."""
        return self.refit or self.strip

    @property
    def names(self) -> tuple[str, ...]:
        """The flags that differ from the default, as ``name`` or ``name=value``."""
        flags = {name: value for name, value in asdict(self).items() if value is not None and value is not False}
        return tuple(name if value is True else f"{name}={value}" for name, value in flags.items())


@dataclass(frozen=True)
class EngineJob:
    """A graph, and the engine to build from it.

    Attributes:
        graph: name of the graph, and of the engine file.
        onnx: path of the ONNX file.
        folder: path of the engine's folder.
        timing_cache: path of the timing cache that builds share.
        target, version: the library.
        gpus: architectures such as ``sm89``.
        precision: dtype of the graph's features.
        flags: how the library builds.
        batch: images of a call.
        profile: shapes of every input, by tensor name.
        dtypes: dtype of every tensor that the program binds, by tensor name.
        graph_digest: of the graph without its name.
        weights_digest: of the weights file.
        weight_bytes: weights of the graph.
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
        """sha256 over graph, weights, target, version, GPUs, flags and profile. Names and paths do not count."""
        fields = [self.graph_digest, self.weights_digest, self.target, self.version, self.gpus, asdict(self.flags)]
        shapes = {name: asdict(self.profile[name]) for name in sorted(self.profile)}
        return hashlib.sha256(json.dumps([*fields, shapes], sort_keys=True).encode()).hexdigest()


def graph_tensors(program: Program) -> dict[str, dict[str, TensorSpec]]:
    """The spec of every tensor that a run binds, and of the timestep, by graph and by the graph's tensor name."""
    slots = {slot.name: slot for slot in program.slots}
    tensors: dict[str, dict[str, TensorSpec]] = {graph.name: {} for graph in program.graphs}
    for graph in program.graphs:
        if TIMESTEP in graph.inputs:
            tensors[graph.name][TIMESTEP] = TensorSpec(TIMESTEP, ("rows",), "float32")
    for run in program.runs:
        tensors[run.graph] |= {name: slots[slot] for name, slot in (*run.inputs, *run.outputs)}
    return tensors


def check_batch(contract: Contract, batch: BatchRange | None) -> BatchRange:
    """The batch range to build for.

    Args:
        contract: the bundle's contract.
        batch: the requested range. None takes the contract's own range.

    Returns:
        The range.

    Raises:
        UsageError: the range is not ordered, or exceeds the contract's range.
    """
    allowed = contract.batch
    request = batch or allowed
    if not allowed.min <= request.min <= request.opt <= request.max <= allowed.max:
        raise UsageError(
            f"batch must be MIN-OPT-MAX in order and within the contract's {allowed.min} to {allowed.max} images, got "
            f"{request.min}-{request.opt}-{request.max}"
        )
    return request


def check_tokens(contract: Contract, tokens: SizeRange | None) -> dict[str, SizeRange]:
    """The ranges of all free sizes to build for.

    Args:
        contract: the bundle's contract.
        tokens: the requested lengths of the text sequence. None takes the contract's own range.

    Returns:
        Ranges by symbol.

    Raises:
        UsageError: the lengths are not ordered, or exceed the contract's range.
    """
    ranges = contract.ranges
    if tokens is None:
        return ranges
    allowed = contract.tokens
    if allowed is None or not allowed.min <= tokens.min <= tokens.opt <= tokens.max <= allowed.max:
        limits = "none, it takes no text" if allowed is None else str(allowed)
        raise UsageError(
            f"tokens must be MIN-OPT-MAX in order and within the contract's range ({limits}), got "
            f"{tokens.min}-{tokens.opt}-{tokens.max}"
        )
    return {**ranges, TOKENS: tokens}


def profile_of(contract: Contract, batch: BatchRange, sizes: Mapping[str, SizeRange], spec: TensorSpec) -> ProfileRange:
    """Smallest, usual and largest shape of an input.

    Args:
        contract: turns images into rows of the network's batch.
        batch: images of a call.
        sizes: ranges of the free sizes by symbol.
        spec: the input's shape with symbolic sizes.

    Returns:
        The shapes.
    """
    low, usual, high = (
        spec.resolve(contract.sizes(getattr(batch, end), {name: getattr(size, end) for name, size in sizes.items()}))
        for end in ("min", "opt", "max")
    )
    return ProfileRange(low, usual, high)


def job_to_json(job: EngineJob) -> str:
    """A job as one line, for another process."""
    return TypeAdapter(EngineJob).dump_json(job).decode()


def job_from_json(text: str) -> EngineJob:
    """The job that `job_to_json` wrote."""
    return TypeAdapter(EngineJob).validate_json(text)

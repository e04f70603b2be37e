"""Options of the engine build, of the search for fp32 fallback nodes, of the plan and of the profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dipgo_deploy.core.contract import BatchRange, Guidance
from dipgo_deploy.core.engine import TargetName
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.trt.job import BuildFlags

__all__ = ["EngineOptions", "FallbackOptions", "PlanOptions", "ProfileOptions"]


def _check_minimum(options: object, **minimum: int) -> None:
    """Raise UsageError for a field below its minimum. None passes."""
    for name, least in minimum.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class FallbackOptions:
    """How fp32 fallback nodes are searched.

    Attributes:
        images: images whose trajectories are compared.
        seed: seed of the first image.
        steps: steps of each trajectory whose inputs are probed.
        tolerance: allowed deviation of a graph. None takes the default of the half precision.

    Raises:
        UsageError: no image, no step, or a tolerance outside (0, 1).
    """

    images: int = 2
    seed: int = 2000
    steps: int = 6
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_minimum(self, images=1, steps=1)
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance must lie between 0 and 1, got {self.tolerance}")


@dataclass(frozen=True)
class EngineOptions:
    """What to build.

    Attributes:
        precision: a half precision, or None for the dtype that the bundle was exported in.
        target: ``tensorrt`` or ``rtx``, or None for the first that can be used here.
        gpus: architectures such as ``sm89``. Empty for this machine's first GPU.
        batch: images of a call. None takes the contract's range.
        tokens: lengths of the text sequence. None takes the contract's range.
        flags: how the library builds.
        workers: engines built at a time.
        fallback: how fp32 fallback nodes are searched for a half precision.
        check_finite: run a bundle that was exported in half precision once, and refuse numbers that are not finite.
    """

    precision: HalfType | None = None
    target: str | None = None
    gpus: tuple[str, ...] = ()
    batch: BatchRange | None = None
    tokens: SizeRange | None = None
    flags: BuildFlags = BuildFlags()
    workers: int = 1
    fallback: FallbackOptions = FallbackOptions()
    check_finite: bool = True


@dataclass(frozen=True)
class PlanOptions:
    """What to plan for.

    Attributes:
        gpu_memory: bytes of GPU memory. None for no limit.
        batch: images of a call. None takes that of the latency table, else the contract's.
        latency: a latency table of this model.
        precision: a half precision, or None for the bundle's own dtype.
        target: the library that the engines are built for.

    Raises:
        UsageError: a memory or batch below 1.
    """

    gpu_memory: int | None = None
    batch: int | None = None
    latency: LatencyTable | None = None
    precision: HalfType | None = None
    target: TargetName = "rtx"

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_minimum(self, gpu_memory=1, batch=1)


@dataclass(frozen=True)
class ProfileOptions:
    """What a profile measures, and how often.

    Attributes:
        run: backend, device and threads.
        batch: images of a call.
        guidance: guidance layout. None takes the model's own.
        sampler: a name of SAMPLERS. None takes the model's own scheduler.
        sampler_options: options of the scheduler that override the model's own.
        precision: half precision of the graphs. None takes the model's own dtype.
        rounds: timed rounds, after one to warm up.
        steps: steps of every random schedule.
        seed: of the random schedules.
        memory_bytes: programs whose weights exceed this together are timed apart.
        command: the command line, for the record.

    Raises:
        UsageError: a number below its minimum, or a precision that the backend cannot run.
    """

    run: RunOptions = RunOptions()
    batch: int = 8
    guidance: Guidance | None = None
    sampler: str | None = None
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    precision: HalfType | None = None
    rounds: int = 10
    steps: int = 12
    seed: int = 0
    memory_bytes: int = 4 * 2**30
    command: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        _check_minimum(self, batch=1, rounds=1, steps=2, seed=0)
        # The CPU has no half-precision arithmetic, and the torch backend runs no converted graphs.
        can_convert = self.run.on_engines or self.target == "onnxruntime-cuda"
        if self.precision is not None and not can_convert:
            raise UsageError(
                f"precision is for onnxruntime on cuda, tensorrt and rtx, not for {self.target}: leave it out"
            )

    @property
    def target(self) -> str:
        """The name of the backend in the latency table: ``onnxruntime-cpu``, ``torch-cuda``, ``rtx``."""
        return self.run.backend if self.run.on_engines else f"{self.run.backend}-{self.run.device}"

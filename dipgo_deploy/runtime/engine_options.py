"""What to build of a bundle, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.runtime.islands import IslandOptions
from dipgo_deploy.trt.job import BuildFlags

__all__ = ["EngineOptions"]


@dataclass(frozen=True)
class EngineOptions:
    """What to build: ``precision`` None takes the bundle's own; ``batch`` None its contract's range.

    ``checked`` off takes a bundle that was exported in half precision as it is: islands are not searched.
    """

    precision: HalfType | None = None
    target: str | None = None
    gpus: tuple[str, ...] = ()
    batch: BatchRange | None = None
    flags: BuildFlags = field(default_factory=BuildFlags)
    workers: int = 1
    islands: IslandOptions = field(default_factory=IslandOptions)
    checked: bool = True

"""What a profile measures and how often, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.engine import TargetName
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.precision import HalfType

__all__ = ["ProfileOptions", "ProfileProgress", "Target"]

Target = Literal["onnxruntime-cpu", "onnxruntime-cuda", "torch-cpu", "torch-cuda", "tensorrt", "rtx"]
"""Backends and devices that a table can be measured on; the last two run engines, on this machine's GPU."""

_ENGINES: tuple[str, ...] = get_args(TargetName)
_CONVERTED = ("onnxruntime-cuda", *_ENGINES)
"""Targets for which a float32 model is converted to half precision: the CPU has no half arithmetic, torch no graphs."""


@dataclass(frozen=True)
class ProfileOptions:
    """Target, images of a call, guidance layout and sizes of one profile.

    ``guidance`` is the model's own if None; ``precision`` that of the graphs, None for the model's own; ``rounds`` are
    timed, after one to warm up; ``steps`` are those of every random schedule, drawn from ``seed``; ``threads`` of ONNX
    Runtime, None for its own choice; programs whose weights exceed ``memory_bytes`` together are timed apart. Raises
    UsageError for a value that makes no sense.
    """

    target: str = "onnxruntime-cpu"
    batch: int = 8
    guidance: Guidance | None = None
    precision: HalfType | None = None
    rounds: int = 10
    steps: int = 12
    seed: int = 0
    threads: int | None = None
    memory_bytes: int = 4 * 2**30
    command: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.target not in get_args(Target):
            raise UsageError(f"target {self.target!r} cannot be profiled: choose one of {', '.join(get_args(Target))}")
        for name, least in {"batch": 1, "rounds": 1, "steps": 2, "seed": 0}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} {getattr(self, name)} makes no sense: give {least} or more")
        if self.precision is not None and self.target not in _CONVERTED:
            raise UsageError(
                f"--fp16 and --bf16 are for targets {', '.join(_CONVERTED)}, found {self.target}: leave them out"
            )

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return "cuda" if self.on_engines else self.target.rpartition("-")[2]

    @property
    def on_engines(self) -> bool:
        """Whether what is measured are engines, which are built first."""
        return self.target in _ENGINES


@dataclass(frozen=True)
class ProfileProgress:
    """``done`` of ``total`` rounds; ``built`` counts engines, where a target wants some."""

    done: int
    total: int
    built: int = 0

"""What a verification runs, and the tolerances it holds its rungs to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.precision import is_half
from dipgo_deploy.runtime.loaded import BackendName

__all__ = ["EXACT", "HALF", "ROUNDINGS", "SINGLE", "VerifyOptions", "local_tolerance"]

SINGLE, HALF = (1e-4, 1e-3), (2e-2, 1e-1)
"""Local and free-running tolerance of float32, and of half precision."""

EXACT = 1e-5
"""Tolerance of the second rung, relative to the largest value: two ways to say the same in float32."""

ROUNDINGS = 4.0
"""Two correct results differ by up to twice what one of them is off; the rest is for where it happens to be nearer."""


@dataclass(frozen=True)
class VerifyOptions:
    """Images, seed and guidance scale of the trajectories; tolerances relative to the slot's largest value.

    ``None`` for a tolerance takes the dtype's: 1e-4 local and 1e-3 free-running for float32, 2e-2 and 1e-1 for half.
    ``min_psnr_db`` fails the schedule below that median PSNR to the full run; None reports it only. ``target`` is how
    far to climb: ``tensorrt`` and ``rtx`` compare the bundle's engines too, of which ``gpu_memory`` and
    ``trust_engines`` speak. ``device`` is where torch and ONNX Runtime run.
    """

    images: int = 4
    seed: int = 1000
    guidance_scale: float | None = None
    local_tolerance: float | None = None
    free_tolerance: float | None = None
    min_psnr_db: float | None = None
    target: BackendName = "onnxruntime"
    device: str = "cpu"
    gpu_memory: int | None = None
    trust_engines: bool = False

    def __post_init__(self) -> None:
        """Check every number; a tolerance that is not a number would let everything pass, or nothing."""
        if self.images < 1:
            raise UsageError(f"{self.images} images cannot be verified: ask for 1 or more")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative: give 0 or more")
        limits = {
            "a local tolerance": self.local_tolerance,
            "a free-running tolerance": self.free_tolerance,
            "a median PSNR": self.min_psnr_db,
        }
        for name, value in limits.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} of {value} is no positive number: give one, or leave it out")


def local_tolerance(options: VerifyOptions, dtype: str) -> float:
    """Deviation of one call that is allowed in ``dtype``, relative to the slot's largest value."""
    return options.local_tolerance or (HALF if is_half(dtype) else SINGLE)[0]

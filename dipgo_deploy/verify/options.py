"""VerifyOptions and the tolerances of a verification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.precision import is_half
from dipgo_deploy.core.run_options import DeviceName, RunOptions

__all__ = ["EXACT", "HALF", "ROUNDING_FACTOR", "SINGLE", "VerifyOptions", "local_tolerance"]

SINGLE, HALF = (1e-4, 1e-3), (2e-2, 1e-1)
"""Local and free-running tolerance of float32 and of half precision, relative to the slot's largest value."""

EXACT = 1e-5
"""Tolerance of the second rung, where PyTorch computes both sides in float32."""

ROUNDING_FACTOR = 4.0
"""Two correct results differ by up to twice the rounding error of one of them. The other factor of 2 is for places
where the reference happens to be closer to the exact value."""


@dataclass(frozen=True)
class VerifyOptions:
    """How to verify a bundle.

    Attributes:
        images: images whose trajectories are compared.
        seed: seed of the first image.
        guidance_scale: None takes the contract's usual scale.
        local_tolerance: of one call. None takes the dtype's own: 1e-4 for float32, 2e-2 for half precision.
        free_tolerance: of the whole trajectory. None takes 1e-3 for float32, 1e-1 for half precision.
        min_psnr_db: median PSNR to the full run that the schedule must reach. None only reports it.
        sizes: values of free sizes by symbol, such as ``{"tokens": 154}``. The others have their usual values.
        run: the backend to verify. ``tensorrt`` and ``rtx`` verify the bundle's engines in addition to ONNX Runtime.
        reference_device: where PyTorch and ONNX Runtime run. None takes ``run.device``, and ``cpu`` next to engines.

    Raises:
        UsageError: no image, a negative seed, a tolerance that is not a positive number, or backend ``torch``.
    """

    images: int = 4
    seed: int = 1000
    guidance_scale: float | None = None
    local_tolerance: float | None = None
    free_tolerance: float | None = None
    min_psnr_db: float | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    run: RunOptions = RunOptions()
    reference_device: DeviceName | None = None

    def __post_init__(self) -> None:
        """Check every field. A tolerance that is NaN would let everything pass, or nothing."""
        if self.run.backend == "torch":
            raise UsageError(
                "backend torch is the reference of every verification: choose onnxruntime, tensorrt or rtx"
            )
        for name, least in {"images": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("local_tolerance", "free_tolerance", "min_psnr_db"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a positive number, got {value}")

    @property
    def device(self) -> DeviceName:
        """Where PyTorch and ONNX Runtime run."""
        return self.reference_device or ("cpu" if self.run.on_engines else self.run.device)


def local_tolerance(options: VerifyOptions, dtype: str) -> float:
    """The largest deviation that is allowed for one call.

    Args:
        options: the user's tolerance, if there is one.
        dtype: of the network.

    Returns:
        The tolerance relative to the slot's largest value.
    """
    return options.local_tolerance or (HALF if is_half(dtype) else SINGLE)[0]

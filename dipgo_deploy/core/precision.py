"""What was decided about a bundle in half precision: which nodes stay in float32, why, and how near the result is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["HalfType", "Island", "PrecisionRecord", "half_of", "is_half", "variant_name"]

HalfType = Literal["float16", "bfloat16"]
"""The two half precisions."""

_SHORT = {"float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Island:
    """Nodes of one block that stay in float32: the block (or the value its piece gives), node names and the reason."""

    block: str
    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class PrecisionRecord:
    """The half-precision variant of a bundle, or what was found about one that was exported in half precision.

    ``source`` is the sha256 over all that the search depended on; ``fixed`` names nodes that are float32 whatever the
    weights are (angles of sines); ``islands`` what the search found on trajectories; ``wide`` the features that half
    precision cannot hold, whose slots stay float32. ``local`` and ``free`` are relative deviations from the float32
    bundle over ``images`` images: the worst graph fed with its slots, and the image of the whole trajectory.
    """

    dtype: HalfType
    source: str
    tolerance: float
    images: int
    fixed: tuple[str, ...]
    islands: tuple[Island, ...]
    wide: tuple[str, ...]
    local: float
    free: float

    @property
    def keeps_float32(self) -> bool:
        """Whether the search found anything that half precision cannot do."""
        return bool(self.islands or self.wide)


def is_half(dtype: str) -> bool:
    """Whether a dtype is one of the half precisions."""
    return dtype in get_args(HalfType)


def half_of(dtype: str) -> HalfType | None:
    """A dtype as a half precision; None where it is none."""
    return next((half for half in get_args(HalfType) if half == dtype), None)


def variant_name(file: str, dtype: HalfType) -> str:
    """The name of a file's half-precision variant: ``master.onnx`` → ``master.fp16.onnx``, as diffusers does."""
    stem, _, suffix = file.rpartition(".")
    return f"{stem}.{_SHORT[dtype]}.{suffix}"

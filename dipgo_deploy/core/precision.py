"""PrecisionRecord: the nodes of a half-precision bundle that stay in float32, and the deviation from float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["FallbackNodes", "HalfType", "PrecisionRecord", "half_of", "half_precision_name", "is_half"]

HalfType = Literal["float16", "bfloat16"]
"""The two half precisions."""

_SHORT = {"float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class FallbackNodes:
    """Nodes of one block that stay in float32.

    ``block`` names the block, or the value that the nodes compute, if they are outside all blocks.
    """

    block: str
    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class PrecisionRecord:
    """The half-precision graphs of a bundle.

    Attributes:
        dtype: the half precision.
        source: sha256 over everything that the search for fallback nodes depended on.
        tolerance: allowed relative deviation of a graph.
        images: images whose trajectories were compared.
        always_fp32: nodes that are float32 for any weights, such as the angles of sines.
        fallback: fp32 fallback nodes, as found on trajectories.
        fp32_tensors: features beyond the range of the half precision. Their slots stay float32.
        local: relative deviation of the worst graph from float32, each graph fed with float32 slots.
        free: relative deviation of the image after the whole trajectory.
    """

    dtype: HalfType
    source: str
    tolerance: float
    images: int
    always_fp32: tuple[str, ...]
    fallback: tuple[FallbackNodes, ...]
    fp32_tensors: tuple[str, ...]
    local: float
    free: float


def is_half(dtype: str) -> bool:
    """Whether a dtype is a half precision."""
    return dtype in get_args(HalfType)


def half_of(dtype: str) -> HalfType | None:
    """A dtype as a half precision, None for any other dtype."""
    return next((half for half in get_args(HalfType) if half == dtype), None)


def half_precision_name(file: str, dtype: HalfType) -> str:
    """The name of a file's half-precision counterpart: ``master.onnx`` → ``master.fp16.onnx``, as in diffusers."""
    stem, _, suffix = file.rpartition(".")
    return f"{stem}.{_SHORT[dtype]}.{suffix}"

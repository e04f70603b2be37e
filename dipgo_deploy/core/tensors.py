"""TensorSpec: name, dtype and symbolic shape of a tensor whose batch size is known only at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from dipgo_deploy.core.errors import InputError

__all__ = ["DTYPE_BYTES", "MIB", "Dim", "TensorSpec", "check_specs", "resolve_dim"]

MIB = 2**20
"""Bytes of one MiB."""

Dim = int | str
"""A size: a number, or a product of symbols and numbers such as ``"rows"`` or ``"5*rows"``.

Symbols: ``batch`` (images) and ``rows`` (rows of the network's batch, 2 * batch with concatenated guidance).
"""

DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}
"""Bytes of one element, for every dtype that a slot may have."""


def resolve_dim(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of a symbolic size.

    Args:
        dim: a number, or a product of symbols and numbers.
        sizes: the value of every symbol.

    Returns:
        The size in elements.

    Raises:
        KeyError: ``dim`` has a symbol that ``sizes`` lacks.
    """
    if isinstance(dim, int):
        return dim
    return prod(int(factor) if factor.isdigit() else sizes[factor] for factor in dim.split("*"))


@dataclass(frozen=True)
class TensorSpec:
    """Name, symbolic shape and dtype of one tensor."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers."""
        return tuple(resolve_dim(dim, sizes) for dim in self.shape)

    def nbytes(self, sizes: Mapping[str, int]) -> int:
        """Size in bytes."""
        return prod(self.resolve(sizes)) * DTYPE_BYTES[self.dtype]


def check_specs(specs: Iterable[TensorSpec], source: str) -> None:
    """Raise InputError, with a message that begins with ``source``, for an unknown dtype or an unusable shape."""
    for spec in specs:
        if spec.dtype not in DTYPE_BYTES or not all(map(_is_size, spec.shape)):
            raise InputError(
                f"{source}: {spec.name} has no usable shape or dtype ({spec.shape}, {spec.dtype}): fix the file"
            )


def _is_size(dim: Dim) -> bool:
    if isinstance(dim, int):
        return dim >= 0
    return all(factor in ("batch", "rows") or factor.isdecimal() for factor in dim.split("*"))

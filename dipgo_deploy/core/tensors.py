"""TensorSpec: name, dtype and symbolic shape of a tensor, and SizeRange: the values that a symbol may take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from dipgo_deploy.core.errors import InputError

__all__ = [
    "DTYPE_BYTES",
    "FREE_SIZES",
    "HEIGHT",
    "MIB",
    "ROWS",
    "TOKENS",
    "WIDTH",
    "Dim",
    "SizeRange",
    "TensorSpec",
    "check_specs",
    "resolve_dim",
]

MIB = 2**20
"""Bytes of one MiB."""

Dim = int | str
"""A size: a number, or a sum of products of symbols and numbers, such as ``"5*rows"`` or ``"tokens+256"``.

A product may end in a division without remainder. Symbols:

- ``batch``: images of a call
- ``rows``: rows of the network's batch, 2 * batch with concatenated guidance
- ``tokens``: length of the text sequence
- ``height``, ``width``: of the latent, in latent pixels
"""

ROWS, TOKENS, HEIGHT, WIDTH = "rows", "tokens", "height", "width"
"""Symbols of the axes that a batch, a text and a latent have."""

FREE_SIZES = (TOKENS, HEIGHT, WIDTH)
"""Symbols whose values a caller may choose within the range of the contract, besides the batch."""

DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}
"""Bytes of one element, for every dtype that a slot may have."""

_FACTOR = rf"(?:-?[0-9]+|batch|rows|{'|'.join(FREE_SIZES)})"
_PRODUCT = rf"{_FACTOR}(?:\*{_FACTOR})*(?:/[1-9][0-9]*)?"
_DIM = re.compile(rf"{_PRODUCT}(?:\+{_PRODUCT})*")


@dataclass(frozen=True)
class SizeRange:
    """The values of a free size: multiples of ``step`` from ``min`` to ``max``, usually ``opt``.

    Costs are counted and engines are fastest at ``opt``.
    """

    min: int
    opt: int
    max: int
    step: int = 1

    @property
    def is_fixed(self) -> bool:
        """Whether there is only one value."""
        return self.min == self.max

    def has(self, value: int) -> bool:
        """Whether a value lies within the range."""
        return self.min <= value <= self.max and value % self.step == 0

    def __str__(self) -> str:
        multiples = f" in steps of {self.step}" if self.step > 1 else ""
        return str(self.opt) if self.is_fixed else f"{self.min} to {self.max}{multiples}"


def resolve_dim(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of a symbolic size.

    Args:
        dim: a number, or a sum of products of symbols and numbers.
        sizes: the value of every symbol.

    Returns:
        The size in elements.

    Raises:
        KeyError: ``dim`` has a symbol that ``sizes`` lacks.
    """
    if isinstance(dim, int):
        return dim
    return sum(_product(product, sizes) for product in dim.split("+"))


def _product(text: str, sizes: Mapping[str, int]) -> int:
    factors, _, divisor = text.partition("/")
    return prod(sizes[f] if f.isidentifier() else int(f) for f in factors.split("*")) // int(divisor or 1)


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
    return dim >= 0 if isinstance(dim, int) else _DIM.fullmatch(dim) is not None

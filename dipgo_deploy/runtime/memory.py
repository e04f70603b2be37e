"""Linear combinations of slots, in NumPy and in PyTorch.

1. A term is a view: of all rows or one half, of all channels or the first ones.
2. Its coefficient is ``constant + guided * scale``, rounded once to the accumulator's dtype.
3. The sum is accumulated in float32 (float64 as soon as one slot is float64), then cast to the target, copy by copy. So
   the target may be one of the terms.

Memory for slots: NumPy arrays, or PyTorch tensors on a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.program import Combine, Half, Term
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.runtime.backend import BoundCall
from dipgo_deploy.runtime.streams import capture

__all__ = ["FLOAT_DTYPES", "NumpyMemory", "TorchMemory", "bind_numpy_combine", "bind_torch_combine", "check_device"]


def bind_numpy_combine(combine: Combine, buffers: Mapping[str, np.ndarray], guidance_scale: float) -> BoundCall:
    """The combination over arrays. Raises InputError where the shapes of terms and target do not fit."""
    (first, c_first), *rest = _terms(combine, buffers, guidance_scale)
    parts = _parts(combine, buffers[combine.target], first.shape)
    is_double = any(array.dtype == np.float64 for array in (first, *parts, *(view for view, _ in rest)))
    wide = np.dtype(np.float64 if is_double else np.float32)
    total, product = np.empty(first.shape, wide), np.empty(first.shape, wide)

    def act() -> None:
        np.multiply(first, c_first, out=total, dtype=wide)
        for view, c in rest:
            np.multiply(view, c, out=product, dtype=wide)
            np.add(total, product, out=total)
        for part in parts:
            np.copyto(part, total, casting="same_kind")

    return act


def bind_torch_combine(combine: Combine, buffers: Mapping[str, torch.Tensor], guidance_scale: float) -> BoundCall:
    """The combination over tensors of one device. Raises InputError where shapes do not fit."""
    (first, c_first), *rest = _terms(combine, buffers, guidance_scale)
    parts = _parts(combine, buffers[combine.target], first.shape)
    is_double = any(tensor.dtype == torch.float64 for tensor in (first, *parts, *(view for view, _ in rest)))
    total = torch.empty(first.shape, dtype=torch.float64 if is_double else torch.float32, device=first.device)

    def act() -> None:
        # Copied first: the product of a half-precision tensor and a number would be rounded to half precision.
        total.copy_(first).mul_(c_first)
        for view, c in rest:
            total.add_(view, alpha=c)
        for part in parts:
            part.copy_(total)

    return act


def _terms(combine: Combine, buffers: Mapping[str, Any], scale: float) -> list[tuple[Any, float]]:
    if not combine.terms:
        raise InputError(f"the combination into {combine.target} at step {combine.step} has no terms: re-export")
    terms = [(_view(buffers[term.slot], term), term.constant + term.guided * scale) for term in combine.terms]
    for term, (view, _) in zip(combine.terms, terms, strict=True):
        if view.shape != terms[0][0].shape:
            raise InputError(
                f"the combination into {combine.target} at step {combine.step} adds shapes {_text(terms[0][0])} and "
                f"{_text(view)} (slot {term.slot}): re-export"
            )
    return terms


def _view(buffer: Any, term: Term) -> Any:
    rows = buffer[_rows(term.half, len(buffer))]
    return rows if term.channels is None else rows[:, : term.channels]


def _rows(half: Half, count: int) -> slice:
    middle = count // 2
    return {"all": slice(None), "first": slice(middle), "second": slice(middle, None)}[half]


def _parts(combine: Combine, target: Any, shape: tuple[int, ...]) -> list[Any]:
    """The equal parts of the target's rows that each take a copy of the sum."""
    wanted = (combine.copies * shape[0], *shape[1:])
    if tuple(target.shape) != wanted:
        raise InputError(
            f"the combination into {combine.target} at step {combine.step} gives shape {wanted}, but the slot has "
            f"{_text(target)}: re-export"
        )
    return [target[i * shape[0] : (i + 1) * shape[0]] for i in range(combine.copies)]


def _text(buffer: Any) -> str:
    return str(tuple(buffer.shape))


FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")
"""Dtypes that a feature or latent slot may have."""


_NO_GRAPH = "cuda_graph needs device cuda, the device is cpu: leave it out"


def check_device(device: str) -> None:
    """Raise UsageError for a device other than ``cpu`` and ``cuda``, MissingError for ``cuda`` without one."""
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is unknown: choose cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("device cuda is wanted, but PyTorch finds no CUDA GPU here: run on the cpu, or get one")


class NumpyMemory:
    """Slots as C-contiguous arrays of the dtypes that the program gives; bfloat16, which NumPy lacks, is refused."""

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> np.ndarray:
        """See Memory. Raises UsageError for bfloat16."""
        if spec.dtype == "bfloat16":
            raise UsageError(f"slot {spec.name} is bfloat16, which NumPy lacks: run on cuda or the torch backend")
        return np.full(spec.resolve(sizes), np.nan if spec.dtype in FLOAT_DTYPES else 0, spec.dtype)

    def write(self, buffer: np.ndarray, array: np.ndarray) -> None:
        """See Memory."""
        np.copyto(buffer, array, casting="same_kind")

    def read(self, buffer: np.ndarray) -> np.ndarray:
        """See Memory."""
        return buffer.copy()

    def bind_combine(self, combine: Combine, buffers: Mapping[str, np.ndarray], guidance_scale: float) -> BoundCall:
        """See Memory."""
        return bind_numpy_combine(combine, buffers, guidance_scale)

    def running(self) -> AbstractContextManager[None]:
        """See Memory."""
        return nullcontext()

    def captured(self, acts: Sequence[BoundCall]) -> BoundCall:
        """See Memory."""
        raise UsageError(_NO_GRAPH)


class TorchMemory:
    """Slots as tensors on ``device``; ``dtype``, where given, replaces that of every floating slot.

    Raises UsageError and MissingError as ``check_device``, and UsageError for a dtype that is not floating.
    """

    def __init__(self, device: str = "cpu", dtype: str | None = None) -> None:
        check_device(device)
        if dtype is not None and dtype not in FLOAT_DTYPES:
            raise UsageError(f"dtype {dtype!r} is no floating dtype of a slot: choose one of {', '.join(FLOAT_DTYPES)}")
        self.device, self._dtype = device, dtype

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
        """See Memory."""
        is_float = spec.dtype in FLOAT_DTYPES
        dtype = getattr(torch, self._dtype if is_float and self._dtype else spec.dtype)
        return torch.full(spec.resolve(sizes), torch.nan if is_float else 0, dtype=dtype, device=self.device)

    def write(self, buffer: torch.Tensor, array: np.ndarray) -> None:
        """See Memory."""
        buffer.copy_(torch.from_numpy(np.array(array, order="C")))

    def read(self, buffer: torch.Tensor) -> np.ndarray:
        """See Memory."""
        wide = buffer.float() if buffer.dtype == torch.bfloat16 else buffer
        return wide.to("cpu", copy=True).numpy()

    def bind_combine(self, combine: Combine, buffers: Mapping[str, torch.Tensor], guidance_scale: float) -> BoundCall:
        """See Memory."""
        return bind_torch_combine(combine, buffers, guidance_scale)

    def running(self) -> AbstractContextManager[None]:
        """See Memory: PyTorch's own stream."""
        return nullcontext()

    def captured(self, acts: Sequence[BoundCall]) -> BoundCall:
        """See Memory."""
        if self.device != "cuda":
            raise UsageError(_NO_GRAPH)
        return capture(acts)

"""Memory for slots as NumPy arrays or PyTorch tensors, and linear combinations of slots.

1. A term is a view: of all rows or half of them, of all channels or the first ones.
2. The coefficient of a term is ``constant + guided * scale``, rounded once to the dtype of the sum.
3. The sum is accumulated in float32, or in float64 as soon as one slot is float64. It is cast when it is copied to the
   target, so the target may be one of the terms.
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

__all__ = [
    "FLOAT_DTYPES",
    "NO_CUDA_GRAPH",
    "NumpyMemory",
    "TorchMemory",
    "bind_numpy_combine",
    "bind_torch_combine",
    "check_device",
]

FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")
"""Dtypes that a feature or latent slot may have."""

NO_CUDA_GRAPH = "cuda_graph needs device cuda, the device is cpu: leave it out"
"""The refusal of every backend on the CPU."""


def check_device(device: str) -> None:
    """Raise UsageError for a device other than ``cpu`` and ``cuda``, MissingError for ``cuda`` without a GPU."""
    if device not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is unknown: choose cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("device cuda was requested, but PyTorch finds no CUDA GPU here: use device cpu")


class NumpyMemory:
    """Slots as C-contiguous arrays of the dtypes that the program declares.

    bfloat16 is refused, because NumPy does not have it.
    """

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> np.ndarray:
        """See Memory. Raises UsageError for bfloat16."""
        if spec.dtype == "bfloat16":
            raise UsageError(f"slot {spec.name} is bfloat16, which NumPy lacks: use device cuda or backend torch")
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

    def capture(self, calls: Sequence[BoundCall]) -> BoundCall:
        """See Memory."""
        raise UsageError(NO_CUDA_GRAPH)


class TorchMemory:
    """Slots as tensors on a device.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: of every floating slot. None takes the dtypes that the program declares.

    Raises:
        UsageError: an unknown device, or a dtype that is not floating.
        MissingError: ``cuda`` without a GPU.
    """

    def __init__(self, device: str = "cpu", dtype: str | None = None) -> None:
        check_device(device)
        if dtype is not None and dtype not in FLOAT_DTYPES:
            raise UsageError(f"dtype {dtype!r} is not a floating dtype: choose one of {', '.join(FLOAT_DTYPES)}")
        self.device, self._dtype = device, dtype

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
        """See Memory."""
        is_float = spec.dtype in FLOAT_DTYPES
        dtype = getattr(torch, self._dtype if is_float and self._dtype else spec.dtype)
        return torch.full(spec.resolve(sizes), torch.nan if is_float else 0, dtype=dtype, device=self.device)

    def write(self, buffer: torch.Tensor, array: np.ndarray) -> None:
        """See Memory."""
        # from_numpy takes neither negative strides nor read-only arrays, so the array is copied first.
        buffer.copy_(torch.from_numpy(np.array(array, order="C")))

    def read(self, buffer: torch.Tensor) -> np.ndarray:
        """See Memory."""
        readable = buffer.float() if buffer.dtype == torch.bfloat16 else buffer
        return readable.to("cpu", copy=True).numpy()

    def bind_combine(self, combine: Combine, buffers: Mapping[str, torch.Tensor], guidance_scale: float) -> BoundCall:
        """See Memory."""
        return bind_torch_combine(combine, buffers, guidance_scale)

    def running(self) -> AbstractContextManager[None]:
        """See Memory. Calls are queued on PyTorch's own stream."""
        return nullcontext()

    def capture(self, calls: Sequence[BoundCall]) -> BoundCall:
        """See Memory."""
        if self.device != "cuda":
            raise UsageError(NO_CUDA_GRAPH)
        return capture(calls)


def bind_numpy_combine(combine: Combine, buffers: Mapping[str, np.ndarray], guidance_scale: float) -> BoundCall:
    """Bind a combination to arrays.

    Args:
        combine: the combination.
        buffers: arrays by slot.
        guidance_scale: weight of the conditional output.

    Returns:
        The bound call.

    Raises:
        InputError: the shapes of terms and target do not fit.
    """
    (first, first_coefficient), *rest = _terms(combine, buffers, guidance_scale)
    copies = _copies(combine, buffers[combine.target], first.shape)
    is_double = any(array.dtype == np.float64 for array in (first, *copies, *(view for view, _ in rest)))
    sum_dtype = np.dtype(np.float64 if is_double else np.float32)
    total, product = np.empty(first.shape, sum_dtype), np.empty(first.shape, sum_dtype)

    def call() -> None:
        np.multiply(first, first_coefficient, out=total, dtype=sum_dtype)
        for view, coefficient in rest:
            np.multiply(view, coefficient, out=product, dtype=sum_dtype)
            np.add(total, product, out=total)
        for copy in copies:
            np.copyto(copy, total, casting="same_kind")

    return call


def bind_torch_combine(combine: Combine, buffers: Mapping[str, torch.Tensor], guidance_scale: float) -> BoundCall:
    """Bind a combination to tensors of one device.

    Args:
        combine: the combination.
        buffers: tensors by slot.
        guidance_scale: weight of the conditional output.

    Returns:
        The bound call.

    Raises:
        InputError: the shapes of terms and target do not fit.
    """
    (first, first_coefficient), *rest = _terms(combine, buffers, guidance_scale)
    copies = _copies(combine, buffers[combine.target], first.shape)
    is_double = any(tensor.dtype == torch.float64 for tensor in (first, *copies, *(view for view, _ in rest)))
    total = torch.empty(first.shape, dtype=torch.float64 if is_double else torch.float32, device=first.device)

    def call() -> None:
        # Copied before it is scaled: half precision times a number would be rounded to half precision.
        total.copy_(first).mul_(first_coefficient)
        for view, coefficient in rest:
            total.add_(view, alpha=coefficient)
        for copy in copies:
            copy.copy_(total)

    return call


def _terms(combine: Combine, buffers: Mapping[str, Any], scale: float) -> list[tuple[Any, float]]:
    """The view and the coefficient of every term."""
    if not combine.terms:
        raise InputError(f"the combination into {combine.target} at step {combine.step} has no terms: re-export")
    terms = [(_view(buffers[term.slot], term), term.constant + term.guided * scale) for term in combine.terms]
    for term, (view, _) in zip(combine.terms, terms, strict=True):
        if view.shape != terms[0][0].shape:
            raise InputError(
                f"the combination into {combine.target} at step {combine.step} adds shapes {_shape(terms[0][0])} and "
                f"{_shape(view)} (slot {term.slot}): re-export"
            )
    return terms


def _view(buffer: Any, term: Term) -> Any:
    rows = buffer[_rows(term.half, len(buffer))]
    return rows if term.channels is None else rows[:, : term.channels]


def _rows(half: Half, count: int) -> slice:
    middle = count // 2
    return {"all": slice(None), "first": slice(middle), "second": slice(middle, None)}[half]


def _copies(combine: Combine, target: Any, shape: tuple[int, ...]) -> list[Any]:
    """The equal parts of the target's rows. Each of them takes a copy of the sum."""
    needed = (combine.copies * shape[0], *shape[1:])
    if tuple(target.shape) != needed:
        raise InputError(
            f"the combination into {combine.target} at step {combine.step} gives shape {needed}, but the slot has "
            f"{_shape(target)}: re-export"
        )
    return [target[i * shape[0] : (i + 1) * shape[0]] for i in range(combine.copies)]


def _shape(buffer: Any) -> str:
    return str(tuple(buffer.shape))

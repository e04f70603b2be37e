"""Memory for slots: NumPy arrays, or PyTorch tensors on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from dipgo_deploy.core.errors import MissingError, UsageError
from dipgo_deploy.core.program import Combine
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.runtime.backend import Act
from dipgo_deploy.runtime.combine import bind_numpy_combine, bind_torch_combine
from dipgo_deploy.runtime.streams import capture

__all__ = ["FLOAT_DTYPES", "NumpyMemory", "TorchMemory", "check_device"]

FLOAT_DTYPES = ("float64", "float32", "float16", "bfloat16")
"""Dtypes that a feature or latent slot may have."""


_NO_GRAPH = "a CUDA graph needs a CUDA GPU, the device is cpu: leave --cuda-graph out, or run with --device cuda"


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

    def bind_combine(self, combine: Combine, buffers: Mapping[str, np.ndarray], guidance_scale: float) -> Act:
        """See Memory."""
        return bind_numpy_combine(combine, buffers, guidance_scale)

    def running(self) -> AbstractContextManager[None]:
        """See Memory."""
        return nullcontext()

    def captured(self, acts: Sequence[Act]) -> Act:
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

    def bind_combine(self, combine: Combine, buffers: Mapping[str, torch.Tensor], guidance_scale: float) -> Act:
        """See Memory."""
        return bind_torch_combine(combine, buffers, guidance_scale)

    def running(self) -> AbstractContextManager[None]:
        """See Memory: PyTorch's own stream."""
        return nullcontext()

    def captured(self, acts: Sequence[Act]) -> Act:
        """See Memory."""
        if self.device != "cuda":
            raise UsageError(_NO_GRAPH)
        return capture(acts)

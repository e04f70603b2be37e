"""One safetensors file holds every tensor that the graphs and the PyTorch model need.

ONNX reads a tensor of it as external data at ``8 + header length + data offset``; diffusers loads the same file by its
usual name. Tensors that only the graphs need (folded position tables) follow the state dict under names of their own.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dipgo_deploy.core.errors import InputError

__all__ = ["INLINE_BYTES", "WEIGHTS_FILE", "externalize", "read_layout", "save_weights"]

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
"""The name under which diffusers looks for a denoiser's weights."""

INLINE_BYTES = 256
"""Constants below this size stay inside each graph."""


def save_weights(path: Path, state: Mapping[str, torch.Tensor], extras: Mapping[str, np.ndarray]) -> None:
    """Write the state dict and extra constants to ``path``, under a temporary name first."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    tensors |= {name: _tensor(array) for name, array in extras.items()}
    # Tied parameters would share memory, which safetensors refuses: each name gets its own copy on disk.
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written ({error}): free space, or choose another place") from None


def _tensor(array: np.ndarray) -> torch.Tensor:
    """An array of any type, also of the half precision that NumPy has only by an extension."""
    whole = np.ascontiguousarray(array)
    if whole.dtype.name == "bfloat16":
        return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(whole)


def read_layout(path: Path) -> dict[str, tuple[int, int]]:
    """Byte offset in the file and length of every tensor. Raises InputError for a damaged or lying header."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: restore it")
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, 100_000_000):
            raise InputError(f"{path} is no safetensors file (header of {length} bytes in {size}): restore it")
        try:
            header = json.loads(stream.read(length))
            spans = {k: _span(*v["data_offsets"]) for k, v in header.items() if k != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path} has no readable safetensors header: restore it") from None
    base = 8 + length
    for name, (first, last) in spans.items():
        if not 0 <= first <= last <= size - base:
            raise InputError(f"{path}: tensor {name} lies outside the file: restore it")
    return {name: (base + first, last - first) for name, (first, last) in spans.items()}


def _span(first: object, last: object) -> tuple[int, int]:
    if type(first) is not int or type(last) is not int:
        raise TypeError("offsets are whole numbers")
    return first, last


def externalize(
    graph: ir.Graph, path: Path, names: Mapping[str, str], layout: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Point initializers at the weights file: ``names`` maps an initializer to its tensor there.

    ``layout`` gives offset and length of each tensor, by default as they stand in the file.
    """
    layout = read_layout(path) if layout is None else layout
    for initializer, tensor in names.items():
        value = graph.initializers[initializer]
        offset, length = layout[tensor]
        assert value.const_value is not None
        value.const_value = ir.ExternalTensor(
            path.name,
            offset,
            length,
            value.const_value.dtype,
            shape=value.const_value.shape,
            name=initializer,
            base_dir=path.parent,
        )

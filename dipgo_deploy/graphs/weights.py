"""The weights file: one safetensors file with every tensor that the graphs and the PyTorch model need.

1. ONNX reads a tensor as external data, at ``8 + header length + data offset``.
2. diffusers loads the same file, under the name that it looks for.
3. The file also holds tensors that only the graphs need, such as folded position tables.
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
"""Constants of fewer bytes stay inside each graph."""


def save_weights(path: Path, state: Mapping[str, torch.Tensor], extras: Mapping[str, np.ndarray]) -> None:
    """Write a weights file, under a temporary name first.

    Args:
        path: the file.
        state: the model's state dict.
        extras: constants of the graphs by name.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    tensors |= {name: _tensor(array) for name, array in extras.items()}
    # safetensors refuses tensors that share memory, as tied parameters do. Each name gets its own copy on disk.
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
    """A tensor with the content of an array. NumPy's bfloat16 is an extension that PyTorch does not know."""
    whole = np.ascontiguousarray(array)
    if whole.dtype.name == "bfloat16":
        return torch.from_numpy(whole.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(whole)


def read_layout(path: Path) -> dict[str, tuple[int, int]]:
    """Byte offset and length of every tensor in a file. Raises InputError for a damaged header."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: restore it")
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, 100_000_000):  # safetensors has the same limit.
            raise InputError(f"{path} is not a safetensors file (header of {length} bytes in {size}): restore it")
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
    """Make initializers refer to tensors of the weights file.

    Args:
        graph: the graph, changed in place.
        path: the weights file.
        names: the tensor's name for each initializer.
        layout: offset and length of each tensor. By default they are read from the file.

    Raises:
        InputError: the file is damaged.
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

"""The weights of a half-precision variant: one more safetensors file beside the float32 one, named as in diffusers.

It holds the model's state dict in the half precision, which diffusers loads by ``variant="fp16"``, the graphs' own
constants, and the float32 twins that islands read.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import torch
from safetensors import safe_open

from dipgo_deploy.core.errors import GateError
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.graphs.precision import WIDE_SUFFIX
from dipgo_deploy.graphs.weights import externalize, read_layout, save_weights

__all__ = ["halved", "save_half_weights", "weight_bytes"]


def save_half_weights(graph: ir.Graph, source: Path, target: Path, dtype: HalfType) -> None:
    """Write every tensor of ``source`` in ``dtype`` to ``target``, with the twins of ``graph``, and point it there.

    Raises GateError for a weight that half precision makes infinite and that no island reads in float32.
    """
    spans = {span: name for name, span in read_layout(source).items()}
    external = {str(value.name): value for value in graph.initializers.values() if _is_external(value)}
    stored = {name: spans[_span(value)] for name, value in external.items()}
    halves = {stored[name] for name in external if not name.endswith(WIDE_SUFFIX)}
    twins = {f"{stored[name]}{WIDE_SUFFIX}": stored[name] for name in external if name.endswith(WIDE_SUFFIX)}
    tensors = {}
    with safe_open(source, "pt") as file:
        for name in file.keys():
            tensors[name] = halved(file.get_tensor(name), name, dtype, name in halves)
        for twin, name in twins.items():
            tensors[twin] = file.get_tensor(name)
    save_weights(target, tensors, {})
    for value in external.values():
        assert value.const_value is not None and value.dtype is not None
        value.const_value = _Typed(value.dtype, value.shape)
    wide = WIDE_SUFFIX
    externalize(graph, target, {n: f"{stored[n]}{wide}" if n.endswith(wide) else stored[n] for n in external})


def weight_bytes(graph: ir.Graph) -> dict[str, int]:
    """Bytes of every initializer."""
    return {name: v.const_value.nbytes for name, v in graph.initializers.items() if v.const_value is not None}


class _Typed:
    """Type and shape of a tensor whose bytes are about to be found in a file."""

    def __init__(self, dtype: ir.DataType, shape: ir.Shape | None) -> None:
        self.dtype, self.shape = dtype, shape


def _is_external(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def _span(value: ir.Value) -> tuple[int, int]:
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None and tensor.length is not None
    return tensor.offset, tensor.length


def halved(tensor: torch.Tensor, name: str, dtype: HalfType, is_read: bool) -> torch.Tensor:
    """A float32 tensor in ``dtype``, any other as it is; GateError where one that ``is_read`` becomes infinite."""
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.to(getattr(torch, dtype))
    if is_read and not torch.isfinite(half).all():
        raise GateError(f"weight {name} reaches {tensor.abs().max():.3g}, which {dtype} cannot hold: build in bf16")
    return half

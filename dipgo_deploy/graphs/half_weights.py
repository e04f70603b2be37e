"""Convert a trace to half precision: the master graph, and one more weights file named as in diffusers.

The file holds the model's state dict in half precision, which diffusers loads by ``variant="fp16"``. It also holds the
graphs' own constants, and float32 copies of the weights that fp32 fallback nodes read.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import torch
from safetensors import safe_open

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import GateError
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.graphs.cut import MASTER_FILE, load_master
from dipgo_deploy.graphs.half_graph import FP32_SUFFIX, always_fp32_nodes, half_blocks, half_graph
from dipgo_deploy.graphs.trace import Trace
from dipgo_deploy.graphs.weights import WEIGHTS_FILE, externalize, read_layout, save_weights

__all__ = ["convert_master", "half_trace", "halved", "save_half_weights", "weight_bytes"]


def save_half_weights(graph: ir.Graph, source: Path, target: Path, dtype: HalfType) -> None:
    """Write every tensor of a weights file in half precision, and make the graph refer to the new file.

    Args:
        graph: a graph that ``half_graph`` converted. It names the float32 copies that it needs.
        source: the float32 weights file.
        target: the file to write.
        dtype: the half precision.

    Raises:
        GateError: half precision makes a weight infinite and no fallback node reads it in float32.
    """
    spans = {span: name for name, span in read_layout(source).items()}
    external = {str(value.name): value for value in graph.initializers.values() if _is_external(value)}
    stored = {name: spans[_span(value)] for name, value in external.items()}
    halves = {stored[name] for name in external if not name.endswith(FP32_SUFFIX)}
    copies = {f"{stored[name]}{FP32_SUFFIX}": stored[name] for name in external if name.endswith(FP32_SUFFIX)}
    tensors = {}
    with safe_open(source, "pt") as file:
        for name in file.keys():
            tensors[name] = halved(file.get_tensor(name), name, dtype, name in halves)
        for copy, name in copies.items():
            tensors[copy] = file.get_tensor(name)
    save_weights(target, tensors, {})
    for value in external.values():
        assert value.const_value is not None and value.dtype is not None
        value.const_value = _Typed(value.dtype, value.shape)
    names = {n: f"{stored[n]}{FP32_SUFFIX}" if n.endswith(FP32_SUFFIX) else stored[n] for n in external}
    externalize(graph, target, names)


def weight_bytes(graph: ir.Graph) -> dict[str, int]:
    """Bytes of every initializer by name."""
    return {name: v.const_value.nbytes for name, v in graph.initializers.items() if v.const_value is not None}


class _Typed:
    """Type and shape of a tensor that `externalize` is about to place in a file."""

    def __init__(self, dtype: ir.DataType, shape: ir.Shape | None) -> None:
        self.dtype, self.shape = dtype, shape


def _is_external(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor)


def _span(value: ir.Value) -> tuple[int, int]:
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None and tensor.length is not None
    return tensor.offset, tensor.length


def halved(tensor: torch.Tensor, name: str, dtype: HalfType, is_read: bool) -> torch.Tensor:
    """A float32 tensor in half precision. A tensor of another dtype is returned as it is.

    Args:
        tensor: the tensor.
        name: its name, for the message.
        dtype: the half precision.
        is_read: whether a graph reads the tensor in half precision, so that an infinite value matters.

    Returns:
        The converted tensor.

    Raises:
        GateError: a tensor that ``is_read`` becomes infinite.
    """
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.to(getattr(torch, dtype))
    if is_read and not torch.isfinite(half).all():
        raise GateError(f"weight {name} reaches {tensor.abs().max():.3g}, which {dtype} cannot hold: use bfloat16")
    return half


def convert_master(
    source: Path,
    blocks: BlockGraph,
    dtype: HalfType,
    fallback: Collection[str],
    fp32_tensors: Collection[str],
    master: Path,
    weights: Path,
) -> BlockGraph:
    """Write the master graph and the weights of a trace in half precision.

    Args:
        source: the folder of the float32 master graph and weights.
        blocks: the blocks of that graph.
        dtype: the half precision.
        fallback: names of the nodes that stay in float32.
        fp32_tensors: names of the features whose slots stay float32.
        master: the file to write the graph to.
        weights: the file to write the weights to.

    Returns:
        The blocks in half precision.

    Raises:
        GateError: a weight is beyond the half precision and no fallback node reads it in float32.
    """
    model = load_master(source / MASTER_FILE)
    half_graph(model.graph, blocks.values, dtype, fallback, fp32_tensors)
    save_half_weights(model.graph, source / WEIGHTS_FILE, weights, dtype)
    write_atomic(master, ir.to_proto(model).SerializeToString())
    return half_blocks(blocks, dtype, fp32_tensors, weight_bytes(model.graph))


def half_trace(trace: Trace, dtype: HalfType, folder: Path) -> Trace:
    """Convert a trace for a measurement. Only nodes that are never half stay in float32.

    Args:
        trace: a trace in float32.
        dtype: the half precision.
        folder: an existing folder for the new trace.

    Returns:
        The trace in half precision.

    Raises:
        GateError: a weight is beyond the half precision.
    """
    fallback = always_fp32_nodes(load_master(trace.master).graph, dtype)
    master, weights = folder / MASTER_FILE, folder / WEIGHTS_FILE
    return Trace(folder, convert_master(trace.folder, trace.blocks, dtype, fallback, (), master, weights))

"""Multiply-accumulates of ONNX nodes for one row of the batch, in the two conventions of core.blocks.Macs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.blocks import ZERO_MACS, Macs
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.capture import PARAMETER_PREFIX

__all__ = ["LAYER_NORM_MACS", "node_count", "node_macs"]

LAYER_NORM_MACS = 2
"""MACs per element of a LayerNorm in the ``papers`` convention, twice that with a learned scale.

This count reproduces the published MACs per forward: 338.749 G for SD-1.5, and 114.473 G for DiT-XL/2, whose norms have
no learned scale.
"""

Shape = tuple[int, ...]

_MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity")


def node_macs(node: ir.Node, specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> Macs:
    """MACs of one node. Only matrix products, convolutions and LayerNorm count.

    A product of two activations (attention) counts only in ``full``.

    Args:
        node: the node.
        specs: shape and dtype of every value.
        sizes: values of the symbols, with one row.

    Returns:
        MACs for one row of the batch.
    """
    count = _COUNTS.get(node.op_type)
    if count is None:
        return ZERO_MACS
    shapes = [_shape(value, specs, sizes) for value in node.inputs]
    macs = count(node, shapes, _shape(node.outputs[0], specs, sizes))
    if node.op_type == "LayerNormalization":
        return Macs(macs, 0)
    is_product_of_activations = node.op_type in ("MatMul", "Einsum") and not any(map(_is_weight, node.inputs))
    return Macs(0 if is_product_of_activations else macs, macs)


def _shape(value: ir.Value | None, specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> Shape:
    if value is None:
        return ()
    spec = specs.get(str(value.name))
    if spec is not None:
        return spec.resolve(sizes)
    assert value.shape is not None
    return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a value is an initializer, or one that was only moved or cast."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in _MOVES:
            return False
        value = producer.inputs[0]
    return value is not None and value.is_initializer()


def _matmul(node: ir.Node, shapes: list[Shape], out: Shape) -> int:
    return prod(out) * shapes[0][-1]


def _gemm(node: ir.Node, shapes: list[Shape], out: Shape) -> int:
    inner = shapes[0][0] if node.attributes.get_int("transA", 0) else shapes[0][1]
    return prod(out) * inner


def _conv(node: ir.Node, shapes: list[Shape], out: Shape) -> int:
    return prod(out) * prod(shapes[1][1:])


def _conv_transpose(node: ir.Node, shapes: list[Shape], out: Shape) -> int:
    return prod(shapes[0]) * prod(shapes[1][1:])


def _layer_norm(node: ir.Node, shapes: list[Shape], out: Shape) -> int:
    scale = node.inputs[1]
    learned = scale is not None and str(scale.name).startswith(PARAMETER_PREFIX)
    return LAYER_NORM_MACS * prod(out) * (2 if learned else 1)


def _einsum(node: ir.Node, shapes: list[Shape], out: Shape) -> int:
    """Product of all index sizes. An einsum of one operand only moves data."""
    if len(shapes) < 2:
        return 0
    terms = node.attributes.get_string("equation", "").split("->")[0].replace(" ", "").split(",")
    pairs = zip(terms, shapes, strict=True)
    sizes = {letter: size for term, shape in pairs for letter, size in zip(term, shape, strict=True)}
    return prod(sizes.values())


_COUNTS: Mapping[str, Callable[[ir.Node, list[Shape], Shape], int]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "LayerNormalization": _layer_norm,
    "Einsum": _einsum,
}


def node_count(graph: bytes) -> int:
    """Number of nodes of a serialized ONNX graph."""
    return len(onnx.load_model_from_string(graph).graph.node)

"""Typed half precision: a graph in float16 or bfloat16, except for fallback nodes in float32.

1. A node computes in half precision, unless it is a fallback node. Nodes that make the arguments of sines and cosines
   are always fallback nodes, because angles reach thousands of radians.
2. A value has the type of the node that makes it. A value at which the graph may be cut is half, unless it is one of
   the fp32 tensors, so that both sides of any cut agree. The timestep stays float32.
3. A cast is inserted where types meet, once per value and type.
4. A weight has the type of its readers. A weight that both kinds of nodes read is stored twice, as ``name`` and
   ``name:float32``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.core.tensors import TensorSpec

__all__ = [
    "HALF_TYPES",
    "FP32_SUFFIX",
    "cast_node",
    "always_fp32_nodes",
    "half_blocks",
    "half_graph",
    "is_float",
]

FP32_SUFFIX = ":float32"
"""Suffix of the name of a weight's float32 copy."""

HALF_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
"""The half precisions as ONNX types."""

_LEARNED = ("Conv", "Gemm", "MatMul")
_BFLOAT16_OPSET = 22
"""The first opset whose convolutions and normalisations take bfloat16."""

_NO_BFLOAT16 = ("Einsum",)
_ALWAYS_FP32_INPUTS = {"Resize": (1, 2)}
"""Inputs that ONNX defines in float32 for data of any type, by their index."""


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is float32. Values of other types are never converted."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def always_fp32_nodes(graph: ir.Graph, dtype: HalfType) -> frozenset[str]:
    """The nodes that stay in float32 for any weights.

    1. Sines, cosines, and the nodes that make their arguments, back to inputs and learned layers.
    2. Operators that ONNX does not define in bfloat16.

    Args:
        graph: a graph in float32.
        dtype: the half precision.

    Returns:
        Names of nodes.
    """
    return _angle_nodes(graph) | {str(n.name) for n in graph if dtype == "bfloat16" and n.op_type in _NO_BFLOAT16}


def _angle_nodes(graph: ir.Graph) -> frozenset[str]:
    nodes: set[ir.Node] = set()
    todo = [node for node in graph if node.op_type in ("Sin", "Cos")]
    while todo:
        node = todo.pop()
        if node in nodes:
            continue
        nodes.add(node)
        producers = (value.producer() for value in node.inputs if value is not None)
        todo += [producer for producer in producers if producer is not None and producer.op_type not in _LEARNED]
    return frozenset(str(node.name) for node in nodes)


def half_graph(
    graph: ir.Graph,
    cuts: Collection[str],
    dtype: HalfType,
    fallback: Collection[str],
    fp32_tensors: Collection[str] = (),
) -> None:
    """Convert a graph in place. Weights in a file keep their float32 bytes until `save_half_weights`.

    Args:
        graph: a graph in float32 whose values all have a type.
        cuts: names of values at which the graph may be cut.
        dtype: the half precision.
        fallback: names of the nodes that stay in float32, including `always_fp32_nodes`.
        fp32_tensors: names of cut values that stay float32.
    """
    _Conversion(graph, set(cuts), HALF_TYPES[dtype], set(fallback), {*fp32_tensors, TIMESTEP}).convert()
    if dtype == "bfloat16":
        graph.opset_imports[""] = max(graph.opset_imports[""], _BFLOAT16_OPSET)


class _Conversion:
    """The conversion of one graph. ``_final`` holds the type that each value will have."""

    def __init__(
        self, graph: ir.Graph, cuts: set[str], half: ir.DataType, fallback: set[str], fp32_tensors: set[str]
    ) -> None:
        self._graph = graph
        self._kinds = {node: ir.DataType.FLOAT if node.name in fallback else half for node in graph}
        cuts = cuts | {str(value.name) for value in graph.outputs}
        self._final: dict[ir.Value, ir.DataType] = {}
        for value in graph.inputs:
            if is_float(value):
                self._final[value] = ir.DataType.FLOAT if value.name in fp32_tensors else half
        for node, kind in self._kinds.items():
            for value in filter(is_float, node.outputs):
                crossing = ir.DataType.FLOAT if value.name in fp32_tensors else half
                self._final[value] = crossing if str(value.name) in cuts else kind
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._constants: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self) -> None:
        """Convert the inputs of every node, then the outputs, then graph inputs and initializers."""
        for node, kind in self._kinds.items():
            self._convert_inputs(node, kind)
        for node, kind in self._kinds.items():
            for value in node.outputs:
                if value in self._final and self._final[value] != kind:
                    self._cast_output(node, value, kind, self._final[value])
                elif value in self._final:
                    value.dtype = kind
        for value in self._graph.inputs:
            value.dtype = self._final.get(value, value.dtype)
        for value in [v for v in self._graph.initializers.values() if is_float(v)]:
            del self._graph.initializers[str(value.name)]
        for constant in self._constants.values():
            self._graph.register_initializer(constant)

    def _convert_inputs(self, node: ir.Node, kind: ir.DataType) -> None:
        keep = _ALWAYS_FP32_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is None or not is_float(value):
                continue
            if value.is_initializer():
                node.replace_input_with(index, self._constant(value, ir.DataType.FLOAT if index in keep else kind))
            elif self._final[value] != kind:
                node.replace_input_with(index, self._cast(value, kind))

    def _constant(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        if (value, kind) not in self._constants:
            name = f"{value.name}{FP32_SUFFIX}" if kind == ir.DataType.FLOAT else str(value.name)
            constant = ir.Value(name=name, shape=value.shape, type=ir.TensorType(kind))
            tensor = value.const_value
            assert tensor is not None
            inline = not isinstance(tensor, ir.ExternalTensor)
            constant.const_value = ir.tensor(tensor.numpy().astype(kind.numpy()), kind, name) if inline else tensor
            self._constants[value, kind] = constant
        return self._constants[value, kind]

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        if (value, kind) not in self._casts:
            node = cast_node(value, kind, f"{value.name}:{kind.name.lower()}")
            producer = value.producer()
            if producer is None:
                self._graph.insert_before(self._graph[0], node)
            else:
                self._graph.insert_after(producer, node)
            self._casts[value, kind] = node.outputs[0]
        return self._casts[value, kind]

    def _cast_output(self, node: ir.Node, value: ir.Value, kind: ir.DataType, final: ir.DataType) -> None:
        """Rename the output, which has type ``kind``, and let a cast make the value that readers know."""
        name = str(value.name)
        value.name, value.dtype = f"{name}:raw", kind
        cast = cast_node(value, final, name)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, value)
        self._graph.insert_after(node, cast)


def cast_node(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    """A Cast node that is not part of a graph yet.

    Args:
        value: the value to cast.
        kind: the new type.
        name: name of the result.

    Returns:
        The node.
    """
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", kind.value)], name=f"cast {name}")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, ir.TensorType(kind)
    return node


def half_blocks(
    blocks: BlockGraph, dtype: HalfType, fp32_tensors: Collection[str], weights: Mapping[str, int]
) -> BlockGraph:
    """The BlockGraph of a converted master graph.

    Args:
        blocks: the BlockGraph in float32.
        dtype: the half precision.
        fp32_tensors: names of the features that stay float32.
        weights: bytes of each initializer of the converted graph. A float32 copy counts with its weight.

    Returns:
        The BlockGraph with the new types and bytes.
    """

    def typed(name: str, spec: TensorSpec) -> TensorSpec:
        keep = spec.dtype != "float32" or name in fp32_tensors or name == TIMESTEP
        return spec if keep else replace(spec, dtype=dtype)

    return replace(
        blocks,
        dtype=dtype,
        inputs=tuple(typed(spec.name, spec) for spec in blocks.inputs),
        values={name: typed(name, spec) for name, spec in blocks.values.items()},
        weights={name: _bytes_of(name, weights) for name in blocks.weights},
    )


def _bytes_of(name: str, weights: Mapping[str, int]) -> int:
    return weights.get(name, 0) + weights.get(name + FP32_SUFFIX, 0)

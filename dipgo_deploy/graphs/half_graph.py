"""Typed half precision: every float tensor of a graph in float16 or bfloat16, but for islands of float32.

1. A node is wide (float32) or half. Wide are the arguments of sines and cosines, from the network's inputs on (angles
   of thousands of radians), and the islands that are asked for.
2. A value has the type of the node that makes it; what crosses between pieces is half, unless asked to be wide, so that
   a cut anywhere finds one type. The timestep stays float32.
3. Casts stand where types meet, one per value and type.
Weights follow their readers; one that both kinds read exists twice, as ``name`` and ``name:float32``.
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
"""Ends the name of a weight's float32 twin, and of what an island gives before it is cast."""

HALF_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
"""The half precisions in the words of ONNX."""

_LEARNED = ("Conv", "Gemm", "MatMul")
_BFLOAT16_OPSET = 22
"""The first version of ONNX whose convolutions and normalisations take bfloat16; nothing else in it concerns us."""

_NO_BFLOAT16 = ("Einsum",)
_ALWAYS_FP32_INPUTS = {"Resize": (1, 2)}
"""Inputs that ONNX has in float32 whatever the data is."""


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is float32, which alone is converted."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def always_fp32_nodes(graph: ir.Graph, dtype: HalfType) -> frozenset[str]:
    """Names of the nodes that stay in float32 whatever the weights are.

    1. Sines, cosines and what leads to their arguments, up to inputs and learned layers.
    2. Operators that ONNX does not have in bfloat16.
    """
    return _angles(graph) | {str(n.name) for n in graph if dtype == "bfloat16" and n.op_type in _NO_BFLOAT16}


def _angles(graph: ir.Graph) -> frozenset[str]:
    found: set[ir.Node] = set()
    todo = [node for node in graph if node.op_type in ("Sin", "Cos")]
    while todo:
        node = todo.pop()
        if node in found:
            continue
        found.add(node)
        makers = (value.producer() for value in node.inputs if value is not None)
        todo += [maker for maker in makers if maker is not None and maker.op_type not in _LEARNED]
    return frozenset(str(node.name) for node in found)


def half_graph(
    graph: ir.Graph, cuts: Collection[str], dtype: HalfType, islands: Collection[str], wide: Collection[str] = ()
) -> None:
    """Convert ``graph`` in place; weights in a file keep their float32 bytes until `save_half_weights`.

    Args:
        graph: float32, every value typed.
        cuts: names of values at which the graph may be cut.
        dtype: the half precision.
        islands: names of the nodes that stay in float32, `always_fp32_nodes` among them.
        wide: names of cut values that stay float32.
    """
    _Conversion(graph, set(cuts), HALF_TYPES[dtype], set(islands), {*wide, TIMESTEP}).convert()
    if dtype == "bfloat16":
        graph.opset_imports[""] = max(graph.opset_imports[""], _BFLOAT16_OPSET)


class _Conversion:
    """One graph on its way; ``_home`` is the type that each value is to have."""

    def __init__(self, graph: ir.Graph, cuts: set[str], half: ir.DataType, islands: set[str], wide: set[str]) -> None:
        self._graph = graph
        self._kinds = {node: ir.DataType.FLOAT if node.name in islands else half for node in graph}
        cuts = cuts | {str(value.name) for value in graph.outputs}
        self._home: dict[ir.Value, ir.DataType] = {}
        for value in graph.inputs:
            if is_float(value):
                self._home[value] = ir.DataType.FLOAT if value.name in wide else half
        for node, kind in self._kinds.items():
            for value in filter(is_float, node.outputs):
                crossing = ir.DataType.FLOAT if value.name in wide else half
                self._home[value] = crossing if str(value.name) in cuts else kind
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._constants: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def convert(self) -> None:
        """Inputs of every node first, then its outputs, then the types and the initializers."""
        for node, kind in self._kinds.items():
            self._feed(node, kind)
        for node, kind in self._kinds.items():
            for value in node.outputs:
                if value in self._home and self._home[value] != kind:
                    self._settle(node, value, kind, self._home[value])
                elif value in self._home:
                    value.dtype = kind
        for value in self._graph.inputs:
            value.dtype = self._home.get(value, value.dtype)
        for value in [v for v in self._graph.initializers.values() if is_float(v)]:
            del self._graph.initializers[str(value.name)]
        for constant in self._constants.values():
            self._graph.register_initializer(constant)

    def _feed(self, node: ir.Node, kind: ir.DataType) -> None:
        keep = _ALWAYS_FP32_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is None or not is_float(value):
                continue
            if value.is_initializer():
                wanted = ir.DataType.FLOAT if index in keep else kind
                node.replace_input_with(index, self._constant(value, wanted))
            elif self._home[value] != kind:
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

    def _settle(self, node: ir.Node, value: ir.Value, kind: ir.DataType, home: ir.DataType) -> None:
        """The node gives ``kind`` under another name; the value that readers know is the cast of it."""
        name = str(value.name)
        value.name, value.dtype = f"{name}:raw", kind
        cast = cast_node(value, home, name)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, value)
        self._graph.insert_after(node, cast)


def cast_node(value: ir.Value, kind: ir.DataType, name: str) -> ir.Node:
    """A node, in no graph yet, that gives ``value`` as ``kind`` under ``name``."""
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", kind.value)], name=f"cast {name}")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, ir.TensorType(kind)
    return node


def half_blocks(blocks: BlockGraph, dtype: HalfType, wide: Collection[str], weights: Mapping[str, int]) -> BlockGraph:
    """The BlockGraph of a converted master: types of all values, and bytes of the weights it has now.

    ``weights`` gives bytes by initializer; a float32 twin counts with its weight.
    """

    def typed(name: str, spec: TensorSpec) -> TensorSpec:
        keep = spec.dtype != "float32" or name in wide or name == TIMESTEP
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

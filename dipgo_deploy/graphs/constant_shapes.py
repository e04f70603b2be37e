"""Shape arithmetic of a graph made constant, or made from the free axes of the network's inputs.

1. A Reshape to a computed shape becomes a Reshape to a constant: 0 for a size that stays in place, -1 for one other.
2. A Split into two parts of computed sizes becomes two Slices.
3. The remaining shape arithmetic starts at the inputs. After that, no integer value depends on a feature, so no shape
   arithmetic keeps a skipped block alive.
4. Each reader has shape arithmetic of its own, so that no integer crosses from one graph to another.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import onnx_ir.passes.common as passes  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.tensors import Dim, TensorSpec
from dipgo_deploy.graphs.shapes import ARITHMETIC

__all__ = ["make_shapes_constant"]

_END = sys.maxsize
"""The bound of a Slice that goes to the end."""


def make_shapes_constant(model: ir.Model, specs: Mapping[str, TensorSpec]) -> None:
    """Replace computed targets by constants, and every other Shape by arithmetic on the inputs' free axes.

    Args:
        model: the graph, changed in place.
        specs: shape and dtype of every value.
    """
    graph, arithmetic = model.graph, _Arithmetic(model.graph, specs)
    _transpose_keys_directly(graph, specs)
    for node in list(graph):
        sizes = node.inputs[1] if node.op_type in ("Reshape", "Split") and len(node.inputs) > 1 else None
        if sizes is not None and not sizes.is_initializer():
            (arithmetic.fix_reshape if node.op_type == "Reshape" else arithmetic.fix_split)(node)
    passes.RemoveUnusedNodesPass()(model)
    for node in [node for node in graph if node.op_type == "Shape"]:
        if node.inputs[0] not in graph.inputs:
            arithmetic.replace_shape(node)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    _separate_readers(graph)
    passes.RemoveUnusedNodesPass()(model)


def _transpose_keys_directly(graph: ir.Graph, specs: Mapping[str, TensorSpec]) -> None:
    """Replace Reshape, Transpose, Reshape by one Transpose of the last two axes, in place.

    The exporter transposes the keys of an attention (rows, heads, tokens, d) as (rows * heads, tokens, d). With free
    tokens, the target of that Reshape would have two free sizes.

    Args:
        graph: the graph.
        specs: shape and dtype of every value.
    """
    for last in [node for node in graph if node.op_type == "Reshape"]:
        middle = _producer(last, "Transpose")
        first = _producer(middle, "Reshape")
        if middle is None or first is None or list(middle.attributes.get_ints("perm", [])) != [0, 2, 1]:
            continue
        source, merged, result = (
            _shape(value, specs) for value in (first.inputs[0], middle.inputs[0], last.outputs[0])
        )
        if len(source) == 4 and merged[1:] == source[2:] and result == (*source[:2], source[3], source[2]):
            swap = ir.Node("", "Transpose", [first.inputs[0]], [ir.AttrInt64s("perm", [0, 1, 3, 2])])
            _replace(graph, last, swap)


def _producer(node: ir.Node | None, op: str) -> ir.Node | None:
    """The node behind the first input, if it is an ``op``."""
    source = node.inputs[0] if node is not None else None
    producer = source.producer() if source is not None else None
    return producer if producer is not None and producer.op_type == op else None


def _shape(value: ir.Value | None, specs: Mapping[str, TensorSpec]) -> tuple[Dim, ...]:
    assert value is not None
    return specs[str(value.name)].shape


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node, output: int = 0) -> None:
    """Let ``new`` give what output number ``output`` of ``old`` gave. ``old`` goes with its last output."""
    before, after = old.outputs[output], new.outputs[0]
    after.type, after.shape = before.type, before.shape
    after.name, before.name = before.name, f"{before.name}_before"
    new.metadata_props.update(old.metadata_props)
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    if not any(value.uses() or value.is_graph_output() for value in old.outputs):
        graph.remove(old, safe=True)


def _reshape_target(source: Sequence[Dim], shape: Sequence[Dim]) -> tuple[int, ...] | None:
    """A constant target: 0 keeps the size of the source's axis, -1 takes what is left. None if two sizes are left."""
    free = [axis for axis, dim in enumerate(shape) if isinstance(dim, str)]
    # One free size needs no 0: -1 holds for any source.
    stay = [axis for axis in free if len(free) > 1 and axis < len(source) and source[axis] == shape[axis]]
    if len(free) - len(stay) > 1:
        return None
    return tuple(dim if isinstance(dim, int) else 0 if axis in stay else -1 for axis, dim in enumerate(shape))


class _Arithmetic:
    """Integer values of a graph that are computed from the free axes of its inputs."""

    def __init__(self, graph: ir.Graph, specs: Mapping[str, TensorSpec]) -> None:
        self._graph, self._specs, self._count = graph, specs, 0
        self._places = {
            dim: (value, axis)
            for value in reversed(graph.inputs)
            for axis, dim in enumerate(_shape(value, specs))
            if isinstance(dim, str)
        }

    def fix_reshape(self, node: ir.Node) -> None:
        """Give a Reshape a target that depends on no feature."""
        shape = _shape(node.outputs[0], self._specs)
        target = _reshape_target(_shape(node.inputs[0], self._specs), shape)
        node.replace_input_with(1, self._vector(node, shape) if target is None else self._constant(target))
        node.attributes.pop("allowzero", None)

    def fix_split(self, node: ir.Node) -> None:
        """Replace a Split into two parts by Slices, with constant bounds if one part has a constant size."""
        if len(node.outputs) != 2 or node.inputs[0] is None:
            return
        axis = node.attributes.get_int("axis", 0)
        first, second = (_shape(value, self._specs)[axis] for value in node.outputs)
        border = self._constant((-second,)) if isinstance(second, int) else self._vector(node, (first,))
        start, end, axes = self._constant((0,)), self._constant((_END,)), self._constant((axis,))
        source = node.inputs[0]
        for index, bounds in enumerate(((start, border), (border, end))):
            _replace(self._graph, node, ir.Node("", "Slice", [source, *bounds, axes]), index)

    def replace_shape(self, node: ir.Node) -> None:
        """Replace Shape(x)[start:end] by a concatenation of constants and sums of products of symbols."""
        shape = _shape(node.inputs[0], self._specs)
        part = shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(shape))]
        ir.convenience.replace_all_uses_with(node.outputs[0], self._vector(node, part))
        self._graph.remove(node, safe=True)

    def _vector(self, before: ir.Node, dims: Sequence[Dim]) -> ir.Value:
        if all(isinstance(dim, int) for dim in dims):
            return self._constant(tuple(int(dim) for dim in dims))
        parts = [self._size(before, dim) for dim in dims]
        return parts[0] if len(parts) == 1 else self._append(before, "Concat", parts, [ir.AttrInt64("axis", 0)])

    def _size(self, before: ir.Node, dim: Dim) -> ir.Value:
        """One size as a list of one number."""
        products = [self._product(before, text) for text in str(dim).split("+")]
        return self._chain(before, "Add", products)

    def _product(self, before: ir.Node, text: str) -> ir.Value:
        factors, _, divisor = text.partition("/")
        values = [
            self._axis(before, factor) if factor in self._places else self._constant((int(factor),))
            for factor in factors.split("*")
        ]
        value = self._chain(before, "Mul", values)
        return self._append(before, "Div", [value, self._constant((int(divisor),))]) if divisor else value

    def _chain(self, before: ir.Node, op: str, values: Sequence[ir.Value]) -> ir.Value:
        total = values[0]
        for value in values[1:]:
            total = self._append(before, op, [total, value])
        return total

    def _axis(self, before: ir.Node, symbol: str) -> ir.Value:
        source, axis = self._places[symbol]
        return self._append(before, "Shape", [source], [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)])

    def _append(
        self, before: ir.Node, op: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        node = ir.Node("", op, inputs, attributes)
        self._graph.insert_before(before, node)
        self._count += 1
        node.outputs[0].name, node.outputs[0].type = f"size_{self._count}", ir.TensorType(ir.DataType.INT64)
        return node.outputs[0]

    def _constant(self, numbers: tuple[int, ...]) -> ir.Value:
        """An int64 initializer with these numbers. Equal numbers share an initializer."""
        name = "shape_" + "_".join(str(n) for n in numbers).replace("-", "m")
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.array(numbers, dtype=np.int64), name=name)
            kind = ir.TensorType(ir.DataType.INT64)
            self._graph.register_initializer(ir.Value(name=name, shape=tensor.shape, type=kind, const_value=tensor))
        return self._graph.initializers[name]


def _separate_readers(graph: ir.Graph) -> None:
    """Give every node that reads shape arithmetic nodes of its own for that arithmetic."""
    sizes: set[ir.Value] = set()
    for node in list(graph):
        sources = [value for value in node.inputs if value is not None]
        derived = [value for value in sources if value in sizes]
        is_shape = node.op_type == "Shape" and sources[0] in graph.inputs
        is_sum = node.op_type in ARITHMETIC and all(v in sizes or v.is_initializer() for v in sources)
        if is_shape or (derived and is_sum):
            sizes.update(node.outputs)
            continue
        copies: dict[ir.Value, ir.Value] = {}
        for index, value in enumerate(node.inputs):
            if value in sizes:
                assert value is not None
                node.replace_input_with(index, _copy(graph, node, value, sizes, copies))


def _copy(
    graph: ir.Graph, before: ir.Node, value: ir.Value, sizes: set[ir.Value], copies: dict[ir.Value, ir.Value]
) -> ir.Value:
    """A copy of the arithmetic behind a value, in front of the node that reads it."""
    if value not in sizes:
        return value
    if value not in copies:
        producer = value.producer()
        assert producer is not None
        inputs = [v if v is None else _copy(graph, before, v, sizes, copies) for v in producer.inputs]
        node = ir.Node(producer.domain, producer.op_type, inputs, producer.attributes.values())
        graph.insert_before(before, node)
        node.outputs[0].name = f"{value.name}_for_{before.outputs[0].name}"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        copies[value] = node.outputs[0]
    return copies[value]

"""Shapes of every value of a graph as numbers and multiples of ``rows``, and shape arithmetic made constant.

1. ONNX shape inference runs at two batch sizes. A size that grows with the batch is a multiple of ``rows``.
2. A Reshape to a computed shape becomes a Reshape to a constant with -1 for the batch.
3. The remaining shape arithmetic starts at the batch axis of the first network input. After that, no integer value
   depends on a feature, so no shape arithmetic keeps a skipped block alive.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import onnx_ir.passes.common as passes  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import Dim, TensorSpec

__all__ = ["ROWS", "infer_specs", "make_shapes_constant"]

ROWS = "rows"
"""Symbol of the batch axis of the network's inputs."""

_BATCHES = (2, 3)
"""Rows at which shapes are inferred. With 1 row, a size of 1 could be a number or the batch."""


def infer_specs(model: ir.Model) -> dict[str, TensorSpec]:
    """Shape and dtype of every value. Raises InputError for a size that is not a multiple of the batch."""
    proto = ir.to_proto(model)
    small, large = (_infer_at(proto, rows) for rows in _BATCHES)
    specs = {}
    for name, (dtype, shape) in small.items():
        larger = large[name][1]
        if len(shape) != len(larger):
            raise InputError(f"value {name} changes its rank with the batch: the model cannot run with a dynamic batch")
        specs[name] = TensorSpec(name, tuple(_dim(name, a, b) for a, b in zip(shape, larger, strict=True)), dtype)
    return specs


def _infer_at(proto: onnx.ModelProto, rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = rows
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    shapes = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        kind = value.type.tensor_type
        if not kind.HasField("shape") or any(not dim.HasField("dim_value") for dim in kind.shape.dim):
            raise InputError(f"the shape of {value.name} cannot be inferred: the model cannot run with a dynamic batch")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        shapes[value.name] = (dtype, tuple(dim.dim_value for dim in kind.shape.dim))
    return shapes


def _dim(name: str, small: int, large: int) -> Dim:
    if small == large:
        return small
    share = large - small
    if small != share * _BATCHES[0]:
        raise InputError(
            f"a size of {name} is {small} for 2 rows and {large} for 3 rows, not a multiple of the batch: the model "
            "cannot run with a dynamic batch"
        )
    return ROWS if share == 1 else f"{share}*{ROWS}"


def make_shapes_constant(model: ir.Model, specs: Mapping[str, TensorSpec]) -> None:
    """Replace computed Reshape targets by constants, and every other Shape by arithmetic on the first input's batch.

    Args:
        model: the graph, changed in place.
        specs: shape and dtype of every value.
    """
    graph = model.graph
    constants: dict[tuple[int, ...], ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Reshape" and node.inputs[1] is not None and not node.inputs[1].is_initializer():
            shape = specs[str(node.outputs[0].name)].shape
            if sum(isinstance(dim, str) for dim in shape) <= 1:  # A Reshape target can have only one -1.
                target = tuple(-1 if isinstance(dim, str) else dim for dim in shape)
                node.replace_input_with(1, _constant(graph, constants, target))
                node.attributes.pop("allowzero", None)
    passes.RemoveUnusedNodesPass()(model)
    rows: list[ir.Value] = []
    for node in [node for node in graph if node.op_type == "Shape"]:
        source = node.inputs[0]
        assert source is not None
        if source is not graph.inputs[0]:
            _replace_shape(graph, node, specs[str(source.name)], constants, rows)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)


def _constant(graph: ir.Graph, known: dict[tuple[int, ...], ir.Value], numbers: tuple[int, ...]) -> ir.Value:
    """An int64 initializer with these numbers. Equal numbers share an initializer."""
    if numbers not in known:
        name = "shape_" + "_".join(str(n) for n in numbers).replace("-", "m")
        tensor = ir.tensor(np.array(numbers, dtype=np.int64), name=name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(ir.DataType.INT64), const_value=tensor)
        graph.register_initializer(value)
        known[numbers] = value
    return known[numbers]


def _replace_shape(
    graph: ir.Graph,
    node: ir.Node,
    source: TensorSpec,
    constants: dict[tuple[int, ...], ir.Value],
    rows: list[ir.Value],
) -> None:
    """Shape(x)[start:end] as a concatenation of constants and multiples of the batch."""
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(source.shape))
    parts: list[ir.Value] = []
    for dim in source.shape[start:end]:
        if isinstance(dim, int):
            parts.append(_constant(graph, constants, (dim,)))
            continue
        if not rows:
            first = ir.Node("", "Shape", [graph.inputs[0]], [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)])
            graph.insert_before(graph[0], first)
            first.outputs[0].name = "rows_of_input"
            first.outputs[0].type = ir.TensorType(ir.DataType.INT64)
            rows.append(first.outputs[0])
        factor = 1 if dim == ROWS else int(dim.split("*")[0])
        parts.append(
            rows[0] if factor == 1 else _append(graph, node, "Mul", [rows[0], _constant(graph, constants, (factor,))])
        )
    joined = parts[0] if len(parts) == 1 else _append(graph, node, "Concat", parts, [ir.AttrInt64("axis", 0)])
    ir.convenience.replace_all_uses_with(node.outputs[0], joined)
    graph.remove(node, safe=True)


def _append(
    graph: ir.Graph, before: ir.Node, op: str, inputs: list[ir.Value], attributes: list[ir.Attr] | None = None
) -> ir.Value:
    node = ir.Node("", op, inputs, attributes or [])
    graph.insert_before(before, node)
    node.outputs[0].name = f"{before.outputs[0].name}_{op.lower()}"
    node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    return node.outputs[0]

"""Half precision seen from float32: graphs that compute in float32 and round what half precision would have stored.

ONNX Runtime on a CPU computes half precision in float32 and leaves out the roundings between nodes, so that an overflow
inside a typed graph does not show. In a rounded graph every stored value passes through the half precision, whose
overflow becomes infinite as on a GPU; inputs and outputs stay float32, so that it takes the place of the float32 graph.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.graphs.half_graph import HALF_TYPES, cast_node, is_float

__all__ = ["RANGE_SUFFIX", "add_ranges", "round_graph"]

RANGE_SUFFIX = ":range"
"""Ends the name of the output that holds the largest magnitude of a value."""


def round_graph(
    graph: ir.Graph, cuts: Collection[str], dtype: HalfType, islands: Collection[str], wide: Collection[str] = ()
) -> None:
    """Round in place whatever `half_graph` with the same arguments would store in ``dtype``, weights included."""
    keep = {*wide, TIMESTEP}
    crossing = {*cuts, *(str(value.name) for value in graph.outputs)}
    weights: dict[ir.Value, ir.Value] = {}
    nodes = list(graph)
    stored = [value for value in graph.inputs if is_float(value) and value.name not in keep]
    for node in nodes:
        half = node.name not in islands
        for index, value in enumerate(node.inputs):
            if half and value is not None and is_float(value) and value.is_initializer():
                if value not in weights:
                    weights[value] = _rounded(graph, value, dtype, first=True)
                node.replace_input_with(index, weights[value])
        outputs = [value for value in node.outputs if is_float(value) and value.name not in keep]
        stored += [value for value in outputs if half or str(value.name) in crossing]
    for value in stored:
        _round_uses(graph, value, dtype)


def _round_uses(graph: ir.Graph, value: ir.Value, dtype: HalfType) -> None:
    """Everybody reads the rounded value; an output keeps its name."""
    uses = list(value.uses())
    rounded = _rounded(graph, value, dtype)
    for node, index in uses:
        node.replace_input_with(index, rounded)
    if value.is_graph_output():
        name, value.name = value.name, f"{value.name}:exact"
        rounded.name = name
        graph.outputs[:] = [rounded if output is value else output for output in graph.outputs]


def _rounded(graph: ir.Graph, value: ir.Value, dtype: HalfType, first: bool = False) -> ir.Value:
    half = cast_node(value, HALF_TYPES[dtype], f"{value.name}:half")
    back = cast_node(half.outputs[0], ir.DataType.FLOAT, f"{value.name}:rounded")
    producer = value.producer()
    if first or producer is None:
        graph.insert_before(graph[0], [half, back])
    else:
        graph.insert_after(producer, [half, back])
    return back.outputs[0]


def add_ranges(graph: ir.Graph) -> None:
    """Replace the outputs by the largest magnitude of every float value that a node makes, each as a scalar."""
    graph.outputs.clear()
    for node in list(graph):
        for value in filter(is_float, node.outputs):
            size = ir.Node("", "Abs", [value])
            largest = ir.Node("", "ReduceMax", size.outputs, [ir.AttrInt64("keepdims", 0)])
            for made, suffix in ((size, ":size"), (largest, RANGE_SUFFIX)):
                made.outputs[0].name, made.outputs[0].type = f"{value.name}{suffix}", value.type
            size.outputs[0].shape, largest.outputs[0].shape = value.shape, ir.Shape([])
            graph.insert_after(node, [size, largest])
            graph.outputs.append(largest.outputs[0])

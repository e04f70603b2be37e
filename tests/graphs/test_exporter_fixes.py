"""Every mend changes what is defective and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dipgo_deploy.graphs.exporter_fixes import drop_void_squeezes, fold_known_sizes

FLOAT, INT = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT64)


def constant(name: str, numbers: object) -> ir.Value:
    tensor = ir.tensor(np.array(numbers, dtype=np.int64), name=name)
    return ir.Value(name=name, shape=tensor.shape, type=INT, const_value=tensor)


def graph_of(shape: list, *makes) -> tuple[ir.Graph, list[ir.Node]]:
    """A graph over one input ``x`` of ``shape``; ``makes`` builds each node from the last value and its constants."""
    x = ir.Value(name="x", shape=ir.Shape(shape), type=FLOAT)
    nodes: list[ir.Node] = []
    constants: list[ir.Value] = []
    last = x
    for make in makes:
        node, used = make(last)
        nodes.append(node)
        constants += used
        last = node.outputs[0]
        last.name = f"v{len(nodes)}"
    return ir.Graph([x], [last], nodes=nodes, initializers=constants, opset_imports={"": 20}, name="g"), nodes


def squeeze(axis: int):
    axes = constant("axes", [axis])
    return lambda x: (ir.Node("", "Squeeze", [x, axes]), [axes])


def identity(x: ir.Value):
    return ir.Node("", "Identity", [x]), []


SQUEEZES = [
    (["rows", 16, 4], 1, False),
    (["rows", 1, 4], 1, True),
    (["rows", 16, 4], 0, True),
    (["rows", 4, 16], -1, False),
]


@pytest.mark.parametrize(("shape", "axis", "left"), SQUEEZES)
def test_only_a_squeeze_of_a_long_axis_goes(shape, axis, left) -> None:
    graph, nodes = graph_of(shape, squeeze(axis), identity)
    drop_void_squeezes(graph)
    assert [node.op_type for node in graph] == (["Squeeze", "Identity"] if left else ["Identity"])
    assert left or nodes[1].inputs[0] is graph.inputs[0]


def shape_of(**attributes: int):
    return lambda x: (ir.Node("", "Shape", [x], [ir.AttrInt64(k, v) for k, v in attributes.items()]), [])


def gather(*place: int, scalar: bool = True):
    index = constant("index", place[0] if scalar else list(place))
    return lambda x: (ir.Node("", "Gather", [x, index], [ir.AttrInt64("axis", 0)]), [index])


@pytest.mark.parametrize(
    ("asked", "place", "found"),
    [
        (shape_of(start=0), gather(1), np.array(12)),
        (shape_of(start=1), gather(0), np.array(12)),
        (shape_of(start=0), gather(1, scalar=False), np.array([12])),
        (shape_of(start=0), gather(0), None),
        (shape_of(start=0), gather(0, 1, scalar=False), None),
    ],
)
def test_only_a_known_size_becomes_a_constant(asked, place, found) -> None:
    graph, nodes = graph_of(["rows", 12], asked, place, identity)
    fold_known_sizes(graph)
    reads = nodes[2].inputs[0]
    assert (reads.const_value is None) == (found is None)
    if found is not None:
        assert np.array_equal(reads.const_value.numpy(), found) and reads.const_value.numpy().shape == found.shape

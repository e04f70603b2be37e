"""Every fix changes the defect and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.onnx._internal.exporter._core import TorchTensor

from dipgo_deploy.graphs.exporter_fixes import (
    apply_exporter_fixes,
    drop_void_squeezes,
    fold_known_sizes,
    put_placeholders,
    widen_mixed_concats,
)

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
    ("shape_node", "place", "size"),
    [
        (shape_of(start=0), gather(1), np.array(12)),
        (shape_of(start=1), gather(0), np.array(12)),
        (shape_of(start=0), gather(1, scalar=False), np.array([12])),
        (shape_of(start=0), gather(0), None),
        (shape_of(start=0), gather(0, 1, scalar=False), None),
    ],
)
def test_only_a_known_size_becomes_a_constant(shape_node, place, size) -> None:
    graph, nodes = graph_of(["rows", 12], shape_node, place, identity)
    fold_known_sizes(graph)
    reads = nodes[2].inputs[0]
    assert (reads.const_value is None) == (size is None)
    if size is not None:
        assert np.array_equal(reads.const_value.numpy(), size) and reads.const_value.numpy().shape == size.shape


def test_all_fixes_are_applied() -> None:
    graph, _ = graph_of(["rows", 16, 4], squeeze(1), shape_of(start=0), gather(1), identity)
    apply_exporter_fixes(ir.Model(graph, ir_version=10))
    last = graph.outputs[0].producer()
    assert "Squeeze" not in [node.op_type for node in graph] and last.inputs[0].const_value.numpy() == 16


def test_placeholders_take_no_memory_and_differ():
    def value(name: str, *shape: int) -> ir.Value:
        tensor = ir.Value(name=name, const_value=ir.tensor(np.zeros(1, np.float32)))
        meta = torch.zeros(*shape, dtype=torch.bfloat16, device="meta")
        tensor.const_value = TorchTensor(meta, name=name)
        return tensor

    real = ir.Value(name="real", const_value=ir.tensor(np.ones(3, np.float32), name="real"))
    values = [value("a", 4), value("b", 4), value("large", 1 << 20, 1 << 20), real]
    graph = ir.Graph([], [], nodes=[], initializers=values)
    put_placeholders(graph)
    a, b, large = (np.asarray(graph.initializers[name].const_value.numpy()) for name in ("a", "b", "large"))
    assert a.dtype == b.dtype == large.dtype and a.dtype.name == "bfloat16" and not np.array_equal(a, b)
    assert large.shape == (1 << 20, 1 << 20) and large.strides == (0, 0)
    assert np.array_equal(graph.initializers["real"].const_value.numpy(), np.ones(3))


@pytest.mark.parametrize(
    ("types", "casts"),
    [(("FLOAT16", "FLOAT"), 1), (("FLOAT", "BFLOAT16", "FLOAT16"), 2), (("FLOAT16", "FLOAT16"), 0), (("INT64",), 0)],
)
def test_a_concat_of_several_float_types_computes_in_float32(types: tuple[str, ...], casts: int) -> None:
    kinds = [ir.DataType[name] for name in types]
    values = [
        ir.Value(name=f"x{index}", shape=ir.Shape(["rows", 4]), type=ir.TensorType(kind))
        for index, kind in enumerate(kinds)
    ]
    concat = ir.Node("", "Concat", values, [ir.AttrInt64("axis", -1)], name="concat")
    graph = ir.Graph(values, concat.outputs, nodes=[concat], opset_imports={"": 20}, name="g")
    widen_mixed_concats(graph)
    assert [node.op_type for node in graph] == ["Cast"] * casts + ["Concat"]
    assert len({value.dtype for value in concat.inputs}) == 1

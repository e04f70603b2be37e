"""Peak memory of the values inside a graph: an estimate for engines that are not built yet.

1. Nodes run in order. A value lives from the node that makes it to its last reader.
2. Inputs, outputs and weights of the graph do not count. Inputs and outputs are slots, weights are held elsewhere.
3. Views and slices of a value cost nothing. An element-wise node reuses the memory of an input that it reads last.
4. Attention scores cost nothing, from the product before a Softmax to the product after it, because engines fuse them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.tensors import SizeRange, TensorSpec
from dipgo_deploy.graphs.cut import load_master
from dipgo_deploy.graphs.shapes import infer_specs

__all__ = ["activation_bytes", "master_specs", "peak_bytes"]

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Shape", "Split", "Slice"})
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Erf", "Gelu", "Relu", "Sqrt", "Exp", "Cast", "Neg", "Pow", "Where"}
)


def master_specs(master: Path, ranges: Mapping[str, SizeRange]) -> Mapping[str, TensorSpec]:
    """Shape and dtype of every value of a master graph.

    Args:
        master: the file of the graph.
        ranges: of the free sizes of the graph.

    Returns:
        Specs by the names of the values.

    Raises:
        InputError: the graph cannot be read.
    """
    return infer_specs(load_master(master), ranges)


def activation_bytes(graphs: Iterable[bytes], specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> int:
    """The largest peak of several graphs.

    Args:
        graphs: serialized graphs that were cut from one master graph.
        specs: shape and dtype of every value of the master graph.
        sizes: values of the symbols.

    Returns:
        Bytes, 0 without graphs.
    """
    return max((peak_bytes(content, specs, sizes) for content in graphs), default=0)


def peak_bytes(content: bytes, specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> int:
    """The largest sum of values that live at the same time.

    Args:
        content: a serialized graph that was cut from a master graph.
        specs: shape and dtype of every value of the master graph.
        sizes: values of the symbols.

    Returns:
        Bytes.
    """
    graph = ir.from_proto(onnx.load_model_from_string(content)).graph
    scores = _scores(graph)
    ends = {*graph.inputs, *graph.outputs}
    readers = {value: len(value.uses()) for node in graph for value in node.outputs}
    held: dict[ir.Value, int] = {}
    roots: dict[ir.Value, ir.Value] = {}
    live = peak = 0
    for node in graph:
        for value in node.outputs:
            if node.op_type in _VIEWS and node.inputs[0] is not None:
                source = roots.get(node.inputs[0], node.inputs[0])
                roots[value] = source
                if source in readers:  # The source lives until the last reader of its view.
                    readers[source] += readers[value]
                continue
            free = value in ends or value in scores
            held[value] = 0 if free else _bytes(value, specs, sizes)
            live += held[value]
        freed = sum(held.get(value, 0) for value in _last_reads(node, readers, roots))
        peak = max(peak, live - freed if node.op_type in _ELEMENTWISE else live)
        live -= freed
    return peak


def _last_reads(node: ir.Node, readers: dict[ir.Value, int], roots: Mapping[ir.Value, ir.Value]) -> list[ir.Value]:
    """Values that ``node`` reads last. Counts down the remaining ``readers``."""
    dying = []
    for value in node.inputs:
        root = value if value is None else roots.get(value, value)
        if root is not None and root in readers:
            readers[root] -= 1
            if readers[root] == 0:
                dying.append(root)
    return dying


def _scores(graph: ir.Graph) -> set[ir.Value]:
    """Values between the two products of an attention."""
    scores: set[ir.Value] = set()
    for node in graph:
        if node.op_type != "Softmax":
            continue
        scores.update(node.outputs)
        value = node.inputs[0]
        while value is not None and value not in scores:
            scores.add(value)
            producer = value.producer()
            value = producer.inputs[0] if producer is not None and producer.op_type in _ELEMENTWISE else None
    return scores


def _bytes(value: ir.Value, specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> int:
    spec = specs.get(str(value.name))
    if spec is None:  # The cut added this sum or difference. It is as large as its operands.
        producer = value.producer()
        operands = producer.inputs if producer is not None else ()
        known = (specs[str(operand.name)] for operand in operands if operand is not None and str(operand.name) in specs)
        return max((operand.nbytes(sizes) for operand in known), default=0)
    return spec.nbytes(sizes)

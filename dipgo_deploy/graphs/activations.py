"""How much memory the values inside a graph take at once: an estimate for engines that nobody has built yet.

1. Nodes run in their order; a value lives from the node that makes it to the last one that reads it.
2. A graph's own inputs and outputs are slots, its weights lie elsewhere: neither counts.
3. Views cost nothing, parts of a value among them, and element-wise nodes write over an input that dies with them.
4. Scores of attention, from the product before a Softmax to the one behind it, are never held: engines fuse them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.cut import load_master
from dipgo_deploy.graphs.shapes import infer_specs

__all__ = ["activation_bytes", "master_specs", "peak_bytes"]

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Shape", "Split", "Slice"})
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Erf", "Gelu", "Relu", "Sqrt", "Exp", "Cast", "Neg", "Pow", "Where"}
)


def master_specs(master: Path) -> Mapping[str, TensorSpec]:
    """Shape and dtype of every value of a traced model's graph; InputError if it cannot be read."""
    return infer_specs(load_master(master))


def activation_bytes(graphs: Iterable[bytes], specs: Mapping[str, TensorSpec], rows: int) -> int:
    """The most that any of ``graphs``, cut from the master that ``specs`` describes, needs for ``rows`` rows."""
    return max((peak_bytes(content, specs, rows) for content in graphs), default=0)


def peak_bytes(content: bytes, specs: Mapping[str, TensorSpec], rows: int) -> int:
    """Bytes of one serialized graph's inner values where they are most."""
    graph = ir.from_proto(onnx.load_model_from_string(content)).graph
    scores = _scores(graph)
    ends = {*graph.inputs, *graph.outputs}
    left = {value: len(value.uses()) for node in graph for value in node.outputs}
    sizes: dict[ir.Value, int] = {}
    roots: dict[ir.Value, ir.Value] = {}
    live = peak = 0
    for node in graph:
        for value in node.outputs:
            if node.op_type in _VIEWS and node.inputs[0] is not None:
                source = roots.get(node.inputs[0], node.inputs[0])
                roots[value] = source
                if source in left:
                    left[source] += left[value]
                continue
            free = value in ends or value in scores
            sizes[value] = 0 if free else _bytes(value, specs, rows)
            live += sizes[value]
        dying = _finished(node, left, roots)
        freed = sum(sizes.get(value, 0) for value in dying)
        peak = max(peak, live - freed if node.op_type in _ELEMENTWISE else live)
        live -= freed
    return peak


def _finished(node: ir.Node, left: dict[ir.Value, int], roots: Mapping[ir.Value, ir.Value]) -> list[ir.Value]:
    """Values whose last reader ``node`` is."""
    found = []
    for value in node.inputs:
        root = value if value is None else roots.get(value, value)
        if root is not None and root in left:
            left[root] -= 1
            if left[root] == 0:
                found.append(root)
    return found


def _scores(graph: ir.Graph) -> set[ir.Value]:
    """Values between the two products of an attention."""
    found: set[ir.Value] = set()
    for node in graph:
        if node.op_type != "Softmax":
            continue
        found.update(node.outputs)
        value = node.inputs[0]
        while value is not None and value not in found:
            found.add(value)
            producer = value.producer()
            value = producer.inputs[0] if producer is not None and producer.op_type in _ELEMENTWISE else None
    return found


def _bytes(value: ir.Value, specs: Mapping[str, TensorSpec], rows: int) -> int:
    spec = specs.get(str(value.name))
    if spec is None:  # a sum that a cut has added has the size of what it adds
        producer = value.producer()
        added = producer.inputs if producer is not None else ()
        known = (specs[str(one.name)] for one in added if one is not None and str(one.name) in specs)
        return max((one.nbytes({"rows": rows}) for one in known), default=0)
    return spec.nbytes({"rows": rows})

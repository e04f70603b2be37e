"""What an engine's code grows with: the kernels that a builder will generate from a graph, counted before it builds.

An engine holds its weights and, for every kernel that the builder generates, that kernel's code. The code of TensorRT
for RTX is source text of about 130 kB each, whatever the kernel does; products and convolutions come from a library and
take a few hundred bytes. So what counts is how many kernels are generated, and of which kind:

1. Products, convolutions and attention (product, Softmax, product) are no generated element-wise kernels. They part
   the rest: two nodes between which one of them lies are never in one kernel.
2. What hangs together otherwise is one group. Groups of the same nodes on the same shapes share their code, those on
   plain vectors (the timestep's path) do not.
3. Views and what reads nothing but weights cost nothing.

Which coefficients these counts have is fitted to engines (trt/sizes.py): the counts describe, they do not simulate.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.tensors import TensorSpec

__all__ = ["KERNEL_KINDS", "kernel_counts"]

KERNEL_KINDS = {
    "engine": "1 for every graph",
    "node": "nodes of the graph",
    "group_norm": "InstanceNormalization nodes in distinct groups",
    "layer_norm": "LayerNormalization, RMSNormalization and ReduceMean nodes in distinct groups",
    "pointwise": "distinct groups without a normalisation",
    "layout": "distinct groups that only move values",
    "vector": "groups whose values all have at most two axes",
    "attention": "attentions with heads of more than 8 channels",
    "cross_attention": "those of them that read another sequence",
    "narrow_attention": "distinct attentions with narrower heads, which are not fused",
    "unaligned": "distinct products and convolutions with channels that are no multiple of 8",
}
"""Every count and what it counts."""

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Shape", "Cast", "Constant"})
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul", "Einsum"})
_MOVES = frozenset({"Transpose", "Concat", "Slice", "Split", "Gather", "Expand"})
_SCALINGS = frozenset({"Add", "Mul", "Div", "Cast"})
_MEANS = frozenset({"LayerNormalization", "RMSNormalization", "ReduceMean"})
_FUSED_HEAD = 8
_ALIGNED = 8

_Shape = tuple[object, ...] | None
_Signature = tuple[str, tuple[_Shape, ...], tuple[_Shape, ...]]


def kernel_counts(content: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Every count of `KERNEL_KINDS` for one serialized graph, cut from the master that ``specs`` describes."""
    graph = ir.from_proto(onnx.load_model_from_string(content)).graph
    attention = _attentions(graph)
    fed = _fed(graph)
    found = dict.fromkeys(KERNEL_KINDS, 0) | {"engine": 1, "node": len(graph)}
    for kind, count in (*_group_kinds(_groups(fed, attention), specs), *_attention_kinds(attention, specs)):
        found[kind] += count
    products = {_signature(node, specs) for node in fed if node.op_type in _PRODUCTS}
    return found | {"unaligned": sum(_is_unaligned(one) for one in products)}


def _fed(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that depend on an input of the graph: the others are folded into the weights."""
    inputs = {value for value in graph.inputs if value.name not in graph.initializers}
    found: dict[ir.Node, None] = {}
    for node in graph:
        if any(value is not None and (value in inputs or value.producer() in found) for value in node.inputs):
            found[node] = None
    return list(found)


def _attentions(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """By node of an attention, its Softmax."""
    found: dict[ir.Node, ir.Node] = {}
    for node in graph:
        if node.op_type != "Softmax":
            continue
        members, maker = [node], _maker(node)
        while maker is not None and maker.op_type in _SCALINGS:
            members.append(maker)
            maker = _maker(maker)
        readers = [reader for reader, _ in node.outputs[0].uses()]
        if maker is not None and readers and maker.op_type == readers[0].op_type == "MatMul":
            found |= dict.fromkeys([*members, maker, readers[0]], node)
    return found


def _maker(node: ir.Node) -> ir.Node | None:
    return None if node.inputs[0] is None else node.inputs[0].producer()


def _groups(fed: Iterable[ir.Node], attention: Mapping[ir.Node, ir.Node]) -> list[list[ir.Node]]:
    """Nodes that hang together, none behind a product that is behind another of them."""
    depth: dict[ir.Node, int] = {}
    root: dict[ir.Node, ir.Node] = {}
    for node in fed:
        makers = [maker for value in node.inputs if value is not None and (maker := value.producer()) in depth]
        depth[node] = max((depth[m] + _parts(m, node, attention) for m in makers if m is not None), default=0)
        if node in attention or node.op_type in _PRODUCTS:
            continue
        root[node] = node
        for maker in makers:
            if maker in root and depth[maker] == depth[node]:  # type: ignore[index]
                root[_root(maker, root)] = _root(node, root)  # type: ignore[arg-type]
    groups: dict[ir.Node, list[ir.Node]] = defaultdict(list)
    for node in root:
        if node.op_type not in _VIEWS:
            groups[_root(node, root)].append(node)
    return list(groups.values())


def _parts(maker: ir.Node, node: ir.Node, attention: Mapping[ir.Node, ir.Node]) -> bool:
    if maker in attention:
        return attention[maker] is not attention.get(node)
    return maker.op_type in _PRODUCTS


def _root(node: ir.Node, root: dict[ir.Node, ir.Node]) -> ir.Node:
    while root[node] is not node:
        node = root[node]
    return node


def _group_kinds(groups: Iterable[list[ir.Node]], specs: Mapping[str, TensorSpec]) -> Iterable[tuple[str, int]]:
    alike = Counter(tuple(_signature(node, specs) for node in group) for group in groups)
    for group, times in alike.items():
        operators = [operator for operator, _, _ in group]
        group_norms, means = operators.count("InstanceNormalization"), sum(one in _MEANS for one in operators)
        yield "group_norm", group_norms
        yield "layer_norm", means
        if group_norms or means:
            continue
        if all(shape is not None and len(shape) <= 2 for _, _, outputs in group for shape in outputs):
            yield "vector", times
        else:
            yield "layout" if _MOVES.issuperset(operators) else "pointwise", 1


def _attention_kinds(
    attention: Mapping[ir.Node, ir.Node], specs: Mapping[str, TensorSpec]
) -> Iterable[tuple[str, int]]:
    narrow = set()
    for softmax in dict.fromkeys(attention.values()):
        reader = next(reader for reader, _ in softmax.outputs[0].uses())
        scores, values = _shape(softmax.outputs[0], specs), _shape(reader.outputs[0], specs)
        head = values[-1] if values else None
        if isinstance(head, int) and head > _FUSED_HEAD:
            yield "attention", 1
            yield "cross_attention", int(scores is not None and scores[-1] != scores[-2])
        else:
            narrow.add((scores, values))
    yield "narrow_attention", len(narrow)


def _is_unaligned(product: _Signature) -> bool:
    operator, inputs, outputs = product
    axis = 1 if operator == "Conv" else -1
    channels = [shape[axis] for shape in (*inputs[:1], *outputs) if shape and len(shape) > 1]
    return any(isinstance(count, int) and count % _ALIGNED for count in channels)


def _signature(node: ir.Node, specs: Mapping[str, TensorSpec]) -> _Signature:
    inputs = tuple(_shape(value, specs) for value in node.inputs if value is not None)
    return node.op_type, inputs, tuple(_shape(value, specs) for value in node.outputs)


def _shape(value: ir.Value, specs: Mapping[str, TensorSpec]) -> _Shape:
    spec = specs.get(str(value.name))
    return None if spec is None else tuple(spec.shape)

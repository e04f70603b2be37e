"""Which nodes of a graph a builder runs together: products that it merges, attentions, and groups of all the rest.

Read off engines of TensorRT for RTX, which hold the text of every kernel and the nodes behind it:

1. Products of one input with several weights become one product; whoever reads it reads a part, at an offset.
2. Attention is product, Softmax, product, with scalings and a mask between them.
3. Products and attentions part the rest: two nodes between which one of them lies are never in one kernel. What hangs
   together otherwise is one group, and a group that nothing but one other group reads is drawn into it.
4. Views cost nothing, and what reads nothing but weights is computed when the engine is built.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.tensors import TensorSpec

__all__ = ["DENSE", "PRODUCTS", "Fusion", "Group", "fed_nodes", "fuse", "is_shown", "viewed"]

DENSE = frozenset({"Gemm", "MatMul"})
"""Products of a matrix."""

PRODUCTS = DENSE | {"Conv"}
"""What a library runs."""

_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Shape", "Cast", "Constant"})
_SCALINGS = frozenset({"Add", "Mul", "Div"})
_MOST_SCALINGS = 4

_Key = TypeVar("_Key")


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that hang together, views left out; ``makers`` and ``readers`` are fed nodes around them, past views."""

    nodes: tuple[ir.Node, ...]
    makers: frozenset[ir.Node]
    readers: frozenset[ir.Node]

    @cached_property
    def operators(self) -> tuple[str, ...]:
        """Operator of every node."""
        return tuple(node.op_type for node in self.nodes)


@dataclass(frozen=True)
class Fusion:
    """How a graph falls apart.

    ``specs`` describe its values, by name; ``is_half`` says whether it runs in half precision, whatever they say.
    ``fed`` are the nodes that depend on an input; ``attention`` has the Softmax by node of an attention, whose last is
    the product behind; ``merged`` the place of a product among those that it is merged with.
    """

    specs: Mapping[str, TensorSpec]
    is_half: bool
    fed: Sequence[ir.Node]
    attention: Mapping[ir.Node, ir.Node]
    merged: Mapping[ir.Node, int]
    groups: Sequence[Group]

    @cached_property
    def group_of(self) -> Mapping[ir.Node, Group]:
        """The group of a node."""
        return {node: group for group in self.groups for node in group.nodes}

    def products(self, group: Group) -> frozenset[ir.Node]:
        """Products that a group reads, those of attentions left out."""
        return frozenset(maker for maker in group.makers if maker.op_type in PRODUCTS and maker not in self.attention)

    def read_by(self, group: Group) -> frozenset[ir.Node]:
        """Attentions, by Softmax, that read what a group makes."""
        return frozenset(self.attention[reader] for reader in group.readers if reader in self.attention)

    def shape(self, value: ir.Value) -> tuple[object, ...] | None:
        """Shape of a value, batches as text; None where it is unknown."""
        spec = self.specs.get(str(value.name))
        return None if spec is None else tuple(spec.shape)

    def axis(self, value: ir.Value, axis: int) -> int:
        """Length of an axis; 0 where it is open or unknown."""
        shape = self.shape(value)
        length = shape[axis] if shape is not None and len(shape) > abs(axis + (axis < 0)) else 0
        return length if isinstance(length, int) else 0


def fuse(graph: ir.Graph, specs: Mapping[str, TensorSpec], is_half: bool) -> Fusion:
    """Products, attentions and groups of a graph."""
    fed = fed_nodes(graph)
    places = {node: place for place, node in enumerate(fed)}
    attention = _attentions(fed)
    members = _joined(_connected(fed, attention))
    groups = [_described(sorted(nodes, key=places.__getitem__), places) for nodes in members]
    return Fusion(specs, is_half, fed, attention, _merged(fed), groups)


def fed_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that depend on an input of the graph: the others are computed when an engine is built."""
    inputs = {value for value in graph.inputs if value.name not in graph.initializers}
    found: dict[ir.Node, None] = {}
    for node in graph:
        if any(value is not None and (value in inputs or value.producer() in found) for value in node.inputs):
            found[node] = None
    return list(found)


def _attentions(fed: Sequence[ir.Node]) -> dict[ir.Node, ir.Node]:
    found: dict[ir.Node, ir.Node] = {}
    for node in fed:
        if node.op_type != "Softmax" or node.inputs[0] is None:
            continue
        scores = _scores(node.inputs[0], _MOST_SCALINGS)
        readers = [reader for reader in _readers(node) if reader.op_type == "MatMul"]
        if scores and readers:
            found |= dict.fromkeys([*scores, node, readers[0]], node)
    return found


def _scores(value: ir.Value, deep: int) -> list[ir.Node]:
    """Scalings, masks and the product that a value comes from; nothing where it comes from no product."""
    maker = viewed(value).producer()
    if maker is None or maker.op_type == "MatMul":
        return [] if maker is None else [maker]
    if maker.op_type not in _SCALINGS or not deep:
        return []
    ways = (_scores(one, deep - 1) for one in maker.inputs if one is not None)
    way = next((found for found in ways if found), [])
    return [maker, *way] if way else []


def _merged(fed: Sequence[ir.Node]) -> dict[ir.Node, int]:
    """Products of weights with one value, past views, by their place among them."""
    inputs: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    known = set(fed)
    for node in fed:
        value, weight = node.inputs[:2] if node.op_type in DENSE else (None, None)
        if value is None or weight is None or not _is_weight(weight, known):
            continue
        inputs[viewed(value)].append(node)
    return {node: place for alike in inputs.values() if len(alike) > 1 for place, node in enumerate(alike)}


def _is_weight(value: ir.Value, known: set[ir.Node]) -> bool:
    return value.is_initializer() or (not value.is_graph_input() and value.producer() not in known)


def viewed(value: ir.Value) -> ir.Value:
    """What a view shows, or the value itself."""
    maker = value.producer()
    while maker is not None and maker.op_type in _VIEWS and maker.inputs and maker.inputs[0] is not None:
        value = maker.inputs[0]
        maker = value.producer()
    return value


def _connected(fed: Iterable[ir.Node], attention: Mapping[ir.Node, ir.Node]) -> list[list[ir.Node]]:
    """Nodes that hang together, none behind a product that is behind another of them."""
    depth: dict[ir.Node, int] = {}
    root: dict[ir.Node, ir.Node] = {}
    for node in fed:
        makers = [maker for value in node.inputs if value is not None and (maker := value.producer()) in depth]
        depth[node] = max((depth[m] + _parts(m, node, attention) for m in makers if m is not None), default=0)
        if node in attention or node.op_type in PRODUCTS:
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
    return maker.op_type in PRODUCTS


def _root(key: _Key, root: dict[_Key, _Key]) -> _Key:
    while root[key] != key:
        root[key] = key = root[root[key]]
    return key


def _joined(groups: Sequence[list[ir.Node]]) -> list[list[ir.Node]]:
    """Groups, each that nothing but one other reads drawn into it."""
    place = {node: index for index, nodes in enumerate(groups) for node in nodes}
    readers = [{reader for node in nodes for reader in _readers(node)} for nodes in groups]
    leaves = [any(is_shown(value) for node in nodes for value in node.outputs) for nodes in groups]
    root = {index: index for index in range(len(groups))}
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(groups))):
            if root[index] != index or leaves[index]:
                continue
            targets = {_root(place[reader], root) if reader in place else -1 for reader in readers[index]} - {index}
            if len(targets) == 1 and -1 not in targets:
                root[index] = target = targets.pop()
                readers[target] |= readers[index]
                changed = True
    joined: dict[int, list[ir.Node]] = defaultdict(list)
    for index, nodes in enumerate(groups):
        joined[_root(index, root)] += nodes
    return list(joined.values())


def _described(nodes: Sequence[ir.Node], fed: Container[ir.Node]) -> Group:
    """A group of ``nodes``, with the ``fed`` ones around them."""
    inside = set(nodes)
    makers = {viewed(value).producer() for node in nodes for value in node.inputs if value is not None}
    readers = {reader for node in nodes for reader in _readers(node)}
    around = (frozenset(node for node in found - inside if node in fed) for found in (makers, readers))
    return Group(tuple(nodes), *around)


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    """Nodes that read a node's results, past views."""
    for value in node.outputs:
        for shown in _views(value):
            yield from (reader for reader, _ in shown.uses() if reader.op_type not in _VIEWS)


def is_shown(value: ir.Value) -> bool:
    """Whether a value, or a view of it, leaves the graph."""
    return any(shown.is_graph_output() for shown in _views(value))


def _views(value: ir.Value) -> list[ir.Value]:
    """A value and all views of it."""
    found = {value: None}
    waiting = [value]
    while waiting:
        for reader, place in waiting.pop().uses():
            if reader.op_type in _VIEWS and place == 0:
                fresh = [output for output in reader.outputs if output not in found]
                found |= dict.fromkeys(fresh)
                waiting += fresh
    return list(found)

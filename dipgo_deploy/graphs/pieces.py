"""Pieces: groups of nodes that always run together (core.blocks).

1. Cut values are the features, the block inputs that residuals need, and the prediction.
2. The sinks of a node are the cut values it reaches without passing another cut value.
3. Nodes with equal sinks form a piece.
4. Pieces have no cycles. A path that leaves a piece and returns would pass a cut value, which is a sink of both ends
   and would therefore lie on a cycle of the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.blocks import ZERO_MACS, Piece
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.macs import node_macs

__all__ = ["build_pieces", "nodes_of_pieces"]


def build_pieces(
    graph: ir.Graph, cuts: Iterable[str], specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]
) -> tuple[Piece, ...]:
    """Group the nodes of a graph into pieces.

    Args:
        graph: the graph.
        cuts: names of the cut values.
        specs: shape and dtype of every value.
        sizes: values of the symbols, at which MACs are counted.

    Returns:
        The pieces in topological order.
    """
    bits = {name: 1 << index for index, name in enumerate(cuts)}
    groups, _, order = _grouped(graph, bits)
    return tuple(_piece(index, groups[key], bits, specs, sizes) for index, key in enumerate(order))


def nodes_of_pieces(graph: ir.Graph, cuts: Iterable[str]) -> tuple[tuple[ir.Node, ...], ...]:
    """The nodes of every piece.

    Args:
        graph: the graph.
        cuts: names of the cut values.

    Returns:
        Nodes by piece, in the order of `build_pieces`.
    """
    groups, _, order = _grouped(graph, {name: 1 << index for index, name in enumerate(cuts)})
    return tuple(tuple(groups[key]) for key in order)


def _grouped(
    graph: ir.Graph, bits: Mapping[str, int]
) -> tuple[dict[int, list[ir.Node]], dict[ir.Value, int], list[int]]:
    """Nodes by their sinks, the sinks behind every value, and the groups in topological order."""
    sinks = _sinks(graph, bits)
    groups: dict[int, list[ir.Node]] = {}
    for node in graph:
        groups.setdefault(sinks[node], []).append(node)
    owner = {value: sinks[node] for node in graph for value in node.outputs}
    return groups, owner, _topological(groups, owner)


def _sinks(graph: ir.Graph, bits: Mapping[str, int]) -> dict[ir.Node, int]:
    """The sinks of every node, one bit per cut value: a graph may have hundreds of cuts and thousands of nodes."""
    sinks: dict[ir.Node, int] = {}
    for node in reversed(list(graph)):
        reached = 0
        for value in node.outputs:
            bit = bits.get(str(value.name))
            if bit is not None:
                reached |= bit
                continue
            for consumer, _ in value.uses():
                reached |= sinks[consumer]
        sinks[node] = reached
    return sinks


def _topological(groups: Mapping[int, Sequence[ir.Node]], owner: Mapping[ir.Value, int]) -> list[int]:
    """Group keys. A group follows the groups that it reads, otherwise groups are in the order of their first nodes."""
    before = {
        key: {owner[v] for node in nodes for v in node.inputs if v in owner} - {key} for key, nodes in groups.items()
    }
    order: list[int] = []
    placed: set[int] = set()
    while len(order) < len(groups):
        ready = [key for key in groups if key not in placed and before[key] <= placed]
        order += ready
        placed.update(ready)
    return order


def _piece(
    index: int,
    nodes: Sequence[ir.Node],
    bits: Mapping[str, int],
    specs: Mapping[str, TensorSpec],
    sizes: Mapping[str, int],
) -> Piece:
    inside = set(nodes)
    read = {v for node in nodes for v in node.inputs if v is not None}
    computed = {v for node in nodes for v in node.outputs}
    gives = {v for v in computed if str(v.name) in bits or any(consumer not in inside for consumer, _ in v.uses())}
    weights = {v.name for v in read if v.is_initializer()}
    return Piece(
        index=index,
        reads=tuple(sorted(str(v.name) for v in read - computed if not v.is_initializer())),
        gives=tuple(sorted(str(v.name) for v in gives)),
        macs=sum((node_macs(node, specs, sizes) for node in nodes), ZERO_MACS),
        weights=tuple(sorted(str(name) for name in weights)),
    )

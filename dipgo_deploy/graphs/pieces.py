"""Pieces: the nodes of a graph grouped so that each group runs, or does not run, as a whole (core.blocks).

1. Cut values are the features, the block inputs that residuals need, and the prediction.
2. The sinks of a node are the cut values it reaches without passing another cut value.
3. Nodes with equal sinks form a piece. Pieces are acyclic: a path between two nodes of a piece that left it would
   pass a cut value that is a sink of both ends, hence lies on a cycle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.blocks import ZERO_MACS, Macs, Piece
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.macs import node_macs

__all__ = ["block_totals", "build_pieces", "nodes_of_pieces"]

_SCOPES = "pkg.torch.onnx.name_scopes"


def build_pieces(graph: ir.Graph, cuts: Iterable[str], specs: Mapping[str, TensorSpec]) -> tuple[Piece, ...]:
    """The pieces of ``graph`` in topological order, given the names of its cut values."""
    bits = {name: 1 << index for index, name in enumerate(cuts)}
    groups, owner, order = _grouped(graph, bits)
    return tuple(_piece(index, groups[key], owner, key, bits, specs) for index, key in enumerate(order))


def nodes_of_pieces(graph: ir.Graph, cuts: Iterable[str]) -> tuple[tuple[ir.Node, ...], ...]:
    """The nodes of every piece, in the order of `build_pieces`."""
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
    sinks: dict[ir.Node, int] = {}
    for node in reversed(list(graph)):
        found = 0
        for value in node.outputs:
            own = bits.get(str(value.name))
            if own is not None:
                found |= own
                continue
            for consumer, _ in value.uses():
                found |= sinks[consumer]
        sinks[node] = found
    return sinks


def _topological(groups: Mapping[int, Sequence[ir.Node]], owner: Mapping[ir.Value, int]) -> list[int]:
    """Group keys, each after the groups it reads from, otherwise in order of first node."""
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
    owner: Mapping[ir.Value, int],
    key: int,
    bits: Mapping[str, int],
    specs: Mapping[str, TensorSpec],
) -> Piece:
    inside = set(nodes)
    read = {v for node in nodes for v in node.inputs if v is not None}
    given = {v for node in nodes for v in node.outputs}
    gives = {v for v in given if str(v.name) in bits or any(consumer not in inside for consumer, _ in v.uses())}
    weights = {v.name for v in read if v.is_initializer()}
    return Piece(
        index=index,
        reads=tuple(sorted(str(v.name) for v in read - given if not v.is_initializer())),
        gives=tuple(sorted(str(v.name) for v in gives)),
        macs=sum((node_macs(node, specs) for node in nodes), ZERO_MACS),
        weights=tuple(sorted(str(name) for name in weights)),
    )


def block_totals(
    graph: ir.Graph, blocks: Sequence[str], prefix: str, specs: Mapping[str, TensorSpec]
) -> dict[str, tuple[Macs, set[str]]]:
    """MACs and weight names of each block, by the module that each node was exported from."""
    wanted = {prefix + name: name for name in blocks}
    totals: dict[str, tuple[Macs, set[str]]] = {name: (ZERO_MACS, set()) for name in blocks}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        inside = [wanted[scope] for scope in scopes if scope in wanted]
        if inside:
            macs, weights = totals[inside[-1]]
            weights |= {str(v.name) for v in node.inputs if v is not None and v.is_initializer()}
            totals[inside[-1]] = (macs + node_macs(node, specs), weights)
    return totals

"""The BlockGraph of a captured model: its blocks with their costs, its pieces and the values between them.

1. A node belongs to the innermost block whose module it was exported from.
2. The costs of a block cover the nodes inside the block. Nodes between blocks belong to pieces only.
3. Values that never leave a piece are not described.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

from dipgo_deploy.core.blocks import PREDICTION, ZERO_MACS, Block, BlockGraph, Macs
from dipgo_deploy.core.tensors import ROWS, TensorSpec
from dipgo_deploy.graphs.capture import PARAMETER_PREFIX, Capture
from dipgo_deploy.graphs.macs import node_macs
from dipgo_deploy.graphs.pieces import build_pieces
from dipgo_deploy.models import LoadedModel

__all__ = ["BlockPatterns", "build_block_graph"]

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: a list of the modules that it was exported from, outermost first."""


@dataclass(frozen=True)
class BlockPatterns:
    """The chosen blocks of a model.

    Attributes:
        granularity: name of the block set.
        patterns: path patterns of the blocks.
        strict: whether every pattern must match. Patterns of a preset fit a whole model class, so some may not match.
    """

    granularity: str
    patterns: tuple[str, ...]
    strict: bool


def build_block_graph(
    model: LoadedModel,
    chosen: BlockPatterns,
    captured: Capture,
    specs: Mapping[str, TensorSpec],
    external: Mapping[str, int],
) -> BlockGraph:
    """Describe a captured and simplified model.

    Args:
        model: the denoiser.
        chosen: the blocks.
        captured: the graph and the names of its features.
        specs: shape and dtype of every value.
        external: bytes of each initializer in the weights file.

    Returns:
        The BlockGraph.
    """
    graph = captured.model.graph
    sizes = {ROWS: 1, **{name: size.opt for name, size in captured.sizes.items()}}
    pieces = build_pieces(graph, captured.outputs, specs, sizes)
    inline = {
        name: value.const_value.nbytes
        for name, value in graph.initializers.items()
        if name not in external and value.const_value is not None
    }
    weights = {**external, **inline}
    totals = _block_totals(graph, list(captured.features), specs, sizes)
    blocks = [
        Block(name, features, captured.entries.get(name), totals[name][0], sum(weights[w] for w in totals[name][1]))
        for name, features in captured.features.items()
    ]
    crossing = {v for piece in pieces for v in (*piece.reads, *piece.gives)} | {str(v.name) for v in graph.inputs}
    return BlockGraph(
        model_class=model.class_name,
        model_digest=model.digest,
        granularity=chosen.granularity,
        patterns=chosen.patterns,
        dtype=model.dtype,
        inputs=tuple(specs[str(value.name)] for value in graph.inputs),
        blocks=(*blocks, Block(PREDICTION, (PREDICTION,), None, ZERO_MACS, 0)),
        pieces=pieces,
        values={name: spec for name, spec in specs.items() if name in crossing},
        weights=weights,
        sizes=captured.sizes,
    )


def _block_totals(
    graph: ir.Graph, blocks: Sequence[str], specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]
) -> dict[str, tuple[Macs, set[str]]]:
    """MACs and weight names of each block, by the module that each node was exported from."""
    block_of_scope = {PARAMETER_PREFIX + name: name for name in blocks}
    totals: dict[str, tuple[Macs, set[str]]] = {name: (ZERO_MACS, set()) for name in blocks}
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        inside = [block_of_scope[scope] for scope in scopes if scope in block_of_scope]
        if inside:
            macs, weights = totals[inside[-1]]
            weights |= {str(v.name) for v in node.inputs if v is not None and v.is_initializer()}
            totals[inside[-1]] = (macs + node_macs(node, specs, sizes), weights)
    return totals

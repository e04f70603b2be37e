"""A latency table made by hand for a block graph made by hand."""

from __future__ import annotations

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.latency import LatencyTable


def table_for(graph: BlockGraph, slow: str = "", call_ms: float = 0.05) -> LatencyTable:
    """A ms for every 1000 MACs; ``slow`` names a block that takes ten times as long."""
    pieces = []
    for piece in graph.pieces:
        owners = {graph.block_of_feature.get(value) for value in piece.gives}
        pieces.append(piece.macs.papers / 1000 * (10 if owners == {slow} else 1))
    blocks = dict.fromkeys(graph.block_names, 0.0)
    for ms, piece in zip(pieces, graph.pieces, strict=True):
        if owner := graph.block_of_feature.get(piece.gives[0]):
            blocks[owner] += ms
    return LatencyTable(
        model_class=graph.model_class,
        model_digest=graph.model_digest,
        granularity=graph.granularity,
        patterns=graph.patterns,
        dtype=graph.dtype,
        target="onnxruntime-cpu",
        batch=8,
        rows=8,
        threads=1,
        pieces_ms=tuple(pieces),
        blocks_ms=blocks,
        forward_ms=sum(pieces) + call_ms,
        call_ms=call_ms,
        border_ms_per_mib=0.2,
        cold_ms_per_mib=0.5,
        cache_bytes=4096,
        combine_ms=0.01,
        combine_ms_per_mib=0.1,
        whole_over_calls=1.02,
        spread=0.1,
    )

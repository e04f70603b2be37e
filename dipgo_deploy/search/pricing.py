"""Pruned ratios of many schedules of one graph, without walking the graph anew for every step of each."""

from __future__ import annotations

from collections.abc import Sequence

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.liveness import block_of_stored, reach

__all__ = ["ComputeSets", "Pricer"]

_Walked = tuple[int, tuple[tuple[str, str], ...]]  # MACs, and each stored name that is read with its block

ComputeSets = Sequence[frozenset[str]]
"""Names of the computed blocks, step by step; step 0 holds all of them."""


class Pricer:
    """`core.liveness.pruned_ratio` of hold schedules.

    What a step costs depends only on its computed blocks and on what is demanded of it, and few such pairs occur: each
    is walked once and remembered.
    """

    def __init__(self, graph: BlockGraph, kind: Kind) -> None:
        self._graph, self._kind = graph, kind
        self._walked: dict[tuple[frozenset[str], frozenset[str]], _Walked] = {}

    def ratio(self, computed: ComputeSets) -> float:
        """The share of the full run's MACs (``papers``) not computed, where every reuse holds the last feature."""
        demands: list[set[str]] = [set() for _ in computed]
        kept = 0
        for step in range(len(computed) - 1, -1, -1):
            demands[_latest(computed, step, PREDICTION)].add(self._graph.prediction)
            macs, reads = self._walk(computed[step], frozenset(demands[step]))
            kept += macs
            for name, block in reads:
                demands[_latest(computed, step - 1, block)].add(name)
        return 1.0 - kept / (self._graph.macs.papers * len(computed))

    def _walk(self, computed: frozenset[str], demands: frozenset[str]) -> _Walked:
        key = (computed, demands)
        if key not in self._walked:
            found = reach(self._graph, computed, demands, self._kind)
            macs = self._graph.cost(self._graph.pieces[index] for index in found.pieces).papers
            reads = tuple((name, block_of_stored(self._graph, name)) for name in sorted(found.reads))
            self._walked[key] = (macs, reads)
        return self._walked[key]


def _latest(computed: ComputeSets, step: int, block: str) -> int:
    while block not in computed[step]:
        step -= 1
    return step

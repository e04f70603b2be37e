"""Pruned ratios of many schedules of one graph, without walking the graph anew for every step of each."""

from __future__ import annotations

from functools import cached_property

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.liveness import block_of_stored, reach
from dipgo_deploy.search.candidate import ComputeSets

__all__ = ["Pricer"]

_Walked = tuple[float, tuple[tuple[str, str], ...]]  # cost, and each stored name that is read with its block


class Pricer:
    """`core.liveness.pruned_ratio` of hold schedules: a share of MACs (``papers``), or of time with a latency table.

    What a step costs depends only on its computed blocks and on what is demanded of it, and few such pairs occur: each
    is walked once and remembered. The table's weights count as fetched at every call.
    """

    def __init__(self, graph: BlockGraph, kind: Kind, table: LatencyTable | None = None) -> None:
        self._graph, self._kind, self._table = graph, kind, table
        self._prices = table.prices_ms(graph) if table else tuple(piece.macs.papers for piece in graph.pieces)
        self._call = table.call_ms if table else 0
        self._full = sum(self._prices) + self._call
        self._walked: dict[tuple[frozenset[str], frozenset[str]], _Walked] = {}
        self._live: dict[frozenset[str], frozenset[str]] = {}

    def ratio(self, computed: ComputeSets) -> float:
        """The share of the full run's cost that is saved, where every reuse holds the last feature."""
        return 1.0 - self.kept(computed)

    def kept(self, computed: ComputeSets, first: int = 0) -> float:
        """The share of the full run's cost that steps from ``first`` on compute."""
        demands: list[set[str]] = [set() for _ in computed]
        kept: float = 0
        for step in range(len(computed) - 1, -1, -1):
            demands[_latest(computed, step, PREDICTION)].add(self._graph.prediction)
            cost, reads = self._walk(computed[step], frozenset(demands[step]))
            kept += cost if step >= first else 0
            for name, block in reads:
                demands[_latest(computed, step - 1, block)].add(name)
        return kept / (self._full * len(computed))

    def live(self, computed: frozenset[str]) -> frozenset[str]:
        """The blocks of one step that its own prediction needs: none where the prediction is reused.

        None either where the prediction alone is computed and would come out as the held one (a U-Net's tail).

        What only a later step would read is dropped too: that step holds an older feature. This is what DiP-GO's
        dependent blocks mean, and makes the cost of a step a matter of that step alone.
        """
        if PREDICTION not in computed:
            return frozenset()
        if computed not in self._live:
            found = reach(self._graph, computed, [self._graph.prediction], self._kind).computes
            self._live[computed] = frozenset() if self._tail_repeats and found == {PREDICTION} else found
        return self._live[computed]

    @cached_property
    def _tail_repeats(self) -> bool:
        """Whether the tail reads no input of the network: on reused features alone it gives what is held anyway."""
        found = reach(self._graph, frozenset([PREDICTION]), [self._graph.prediction], self._kind)
        inputs = {spec.name for spec in self._graph.inputs}
        return not any(inputs.intersection(self._graph.pieces[index].reads) for index in found.pieces)

    def kept_share(self, live: frozenset[str]) -> float:
        """Cost of one step that computes ``live`` blocks and feeds only its own prediction, over a full step's."""
        if PREDICTION not in live:
            return 0.0
        return self._walk(live, frozenset([self._graph.prediction]))[0] / self._full

    def own_share(self, block: str) -> float:
        """Cost of what lies inside one block, over a full step's."""
        if self._table is not None:
            return self._table.blocks_ms.get(block, 0.0) / self._full
        return self._graph.block_of_name[block].macs.papers / self._full

    def _walk(self, computed: frozenset[str], demands: frozenset[str]) -> _Walked:
        key = (computed, demands)
        if key not in self._walked:
            found = reach(self._graph, computed, demands, self._kind)
            cost = sum(self._prices[index] for index in found.pieces) + (self._call if found.pieces else 0)
            reads = tuple((name, block_of_stored(self._graph, name)) for name in sorted(found.reads))
            self._walked[key] = (cost, reads)
        return self._walked[key]


def _latest(computed: ComputeSets, step: int, block: str) -> int:
    while block not in computed[step]:
        step -= 1
    return step

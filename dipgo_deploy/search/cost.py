"""Cost of schedules and gates as shares of the full run, in MACs, or in time with a latency table.

The share of a step is that of the blocks its own prediction needs (`Pricer.live`). Four attributions to gates:

* ``cascade``: DiP-GO's constant γ_k, the share of block k and all blocks that die with it in an otherwise full step.
* ``marginal``: the exact difference that block k makes to the step, given the current state of the other gates.
* ``own``: the share of block k alone, and ``equal``: 1 for every gate. Both serve for comparison.
"""

from __future__ import annotations

from functools import cached_property
from typing import get_args

import numpy as np

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.liveness import block_of_stored, reach
from dipgo_deploy.search.candidate import ComputeSets, sets_from_mask
from dipgo_deploy.search.dipgo.options import Attribution

__all__ = ["GateCost", "Pricer"]

_Walked = tuple[float, tuple[tuple[str, str], ...]]
"""Cost of a step, and every stored value that it reads with the value's block."""


class Pricer:
    """`core.liveness.pruned_ratio` of hold schedules: a share of MACs (``papers``), or of time with a latency table.

    The cost of a step depends only on its computed blocks and on what later steps demand of it. Few such pairs occur:
    each is walked once and remembered. The table's weights count as fetched at every call.
    """

    def __init__(self, graph: BlockGraph, kind: Kind, table: LatencyTable | None = None) -> None:
        self._graph, self._kind, self._table = graph, kind, table
        self._prices = table.prices_ms(graph) if table else tuple(piece.macs.papers for piece in graph.pieces)
        self._call = table.call_ms if table else 0
        self._full = sum(self._prices) + self._call
        self._walked: dict[tuple[frozenset[str], frozenset[str]], _Walked] = {}
        self._live: dict[frozenset[str], frozenset[str]] = {}

    def ratio(self, computed: ComputeSets) -> float:
        """The saved share of the full run's cost, if every reuse holds the last feature."""
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

        Also none where the prediction alone is computed and would equal the held prediction (a U-Net's tail).

        A block that only a later step would read is dropped too: that step holds an older feature. These are DiP-GO's
        dependent blocks. Without them the cost of a step depends on that step alone.
        """
        if PREDICTION not in computed:
            return frozenset()
        if computed not in self._live:
            live = reach(self._graph, computed, [self._graph.prediction], self._kind).computes
            self._live[computed] = frozenset() if self._tail_repeats and live == {PREDICTION} else live
        return self._live[computed]

    @cached_property
    def _tail_repeats(self) -> bool:
        """Whether the tail reads no input of the network: on reused features it repeats the held prediction."""
        reached = reach(self._graph, frozenset([PREDICTION]), [self._graph.prediction], self._kind)
        inputs = {spec.name for spec in self._graph.inputs}
        return not any(inputs.intersection(self._graph.pieces[index].reads) for index in reached.pieces)

    def kept_share(self, live: frozenset[str]) -> float:
        """Cost of one step that computes ``live`` blocks and feeds only its own prediction, over a full step's."""
        if PREDICTION not in live:
            return 0.0
        return self._walk(live, frozenset([self._graph.prediction]))[0] / self._full

    def own_share(self, block: str) -> float:
        """Cost of the pieces inside one block, over a full step's."""
        if self._table is not None:
            return self._table.blocks_ms.get(block, 0.0) / self._full
        return self._graph.block_of_name[block].macs.papers / self._full

    def _walk(self, computed: frozenset[str], demands: frozenset[str]) -> _Walked:
        key = (computed, demands)
        if key not in self._walked:
            reached = reach(self._graph, computed, demands, self._kind)
            cost = sum(self._prices[index] for index in reached.pieces) + (self._call if reached.pieces else 0)
            reads = tuple((name, block_of_stored(self._graph, name)) for name in sorted(reached.reads))
            self._walked[key] = (cost, reads)
        return self._walked[key]


def _latest(computed: ComputeSets, step: int, block: str) -> int:
    while block not in computed[step]:
        step -= 1
    return step


class GateCost:
    """Cost of gates as shares of a full step.

    Args:
        pricer: prices for the model and kind of reuse.
        graph: the blocks. Columns of the gates.
        attribution: see Attribution.

    Raises:
        UsageError: an unknown attribution.
    """

    def __init__(self, pricer: Pricer, graph: BlockGraph, attribution: Attribution = "cascade") -> None:
        if attribution not in get_args(Attribution):
            raise UsageError(f"cost {attribution!r} is unknown: choose {', '.join(get_args(Attribution))}")
        self.pricer, self._graph, self.attribution = pricer, graph, attribution
        self._marginal: dict[frozenset[str], np.ndarray] = {}
        everything = frozenset(graph.block_names)
        self._constant = np.array([self._weight(everything, name) for name in graph.block_names])

    def step_share(self, computed: frozenset[str]) -> float:
        """Share of a full step that the live blocks of ``computed`` cost."""
        return self.pricer.kept_share(self.pricer.live(computed))

    def kept(self, computed: ComputeSets) -> float:
        """Mean share over all steps."""
        return sum(map(self.step_share, computed)) / len(computed)

    def weights(self, mask: np.ndarray) -> np.ndarray:
        """Cost of every gate, (steps, blocks), given the open gates in ``mask``."""
        if self.attribution != "marginal":
            return np.broadcast_to(self._constant, mask.shape)
        return np.stack([self.marginal(step) for step in sets_from_mask(mask, self._graph.block_names)])

    def alive(self, mask: np.ndarray) -> np.ndarray:
        """For every entry whether its own step's prediction needs the block, or would if it were computed."""
        live, names = self.pricer.live, self._graph.block_names
        return np.array([[name in live(step | {name}) for name in names] for step in sets_from_mask(mask, names)])

    def marginal(self, computed: frozenset[str]) -> np.ndarray:
        """For every block, the step's share with it minus the share without it."""
        if computed not in self._marginal:
            self._marginal[computed] = np.array([self._difference(computed, name) for name in self._graph.block_names])
        return self._marginal[computed]

    def _difference(self, computed: frozenset[str], name: str) -> float:
        return self.step_share(computed | {name}) - self.step_share(computed - {name})

    def _weight(self, everything: frozenset[str], name: str) -> float:
        if self.attribution == "equal":
            return 1.0
        if self.attribution == "own":
            return self.pricer.own_share(name)
        return self._difference(everything, name)

"""Polish: exchanges of entries that the gradient proposes and real runs decide, at a fixed ratio.

1. One backward pass through the whole chain tells, to first order, what every closed entry (step, block) would gain and
   every open one would lose. Entries are ranked by that over their cost.
2. A move opens one of the best closed entries and closes the cheapest open ones until the ratio holds again; other
   moves shift a computed step by one.
3. Moves are tried in turn on the judge's images; the first that improves the score is taken, and the gradient is found
   anew. Where none improves, the search is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.search.calibration import Judge
from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.threshold import sets_of

__all__ = ["PolishOptions", "Polished", "polish"]

Gradient = Callable[[np.ndarray], np.ndarray]
"""From hard gates (steps, blocks) to the gradient of the loss by every gate."""

_LAST = -1
"""Column of the prediction."""


@dataclass(frozen=True)
class PolishOptions:
    """``moves`` tried at most after one backward pass, ``adds`` entries to open and ``drops`` ways to make room."""

    moves: int = 24
    adds: int = 6
    drops: int = 3
    least_gain_db: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Polished:
    """A mask (steps, blocks) better than the last, its score in dB, and the full trajectories spent so far."""

    mask: np.ndarray
    score_db: float
    spent: float


def polish(
    mask: np.ndarray,
    ratio: float,
    judge: Judge,
    cost: GateCost,
    gradient: Gradient,
    options: PolishOptions = PolishOptions(),
) -> Iterator[Polished]:
    """Improve ``mask`` until no move helps, never past the compute that ``ratio`` allows; yields every better mask.

    The first mask yielded is the given one, without entries that live for nothing.
    """
    rng = np.random.default_rng(options.seed)
    moves = _Moves(judge.graph, cost, ratio, options)
    mask = moves.clean(mask)
    score = judge.score(moves.sets(mask))
    yield Polished(mask, score, judge.spent)
    while True:
        found = None
        for trial in moves.around(mask, -gradient(moves.wished(mask)), rng):
            reached = judge.score(moves.sets(trial))
            if reached > score + options.least_gain_db:
                found = trial, reached
                break
        if found is None:
            return
        mask, score = found
        yield Polished(mask, score, judge.spent)


class _Moves:
    """The neighbourhood of a mask."""

    def __init__(self, graph: BlockGraph, cost: GateCost, ratio: float, options: PolishOptions) -> None:
        self._graph, self._cost, self._room, self._options = graph, cost, 1 - ratio + 1e-9, options

    def sets(self, mask: np.ndarray) -> list[frozenset[str]]:
        return list(sets_of(mask, self._graph, self._cost.pricer))

    def clean(self, mask: np.ndarray) -> np.ndarray:
        return np.array([[name in step for name in self._graph.block_names] for step in self.sets(mask)])

    def wished(self, mask: np.ndarray) -> np.ndarray:
        """A closed step wishes to be computed in full."""
        wished = mask.copy()
        wished[~mask[:, _LAST], :_LAST] = True
        return wished

    def kept(self, mask: np.ndarray) -> float:
        return self._cost.kept(self.sets(mask))

    def around(self, mask: np.ndarray, benefit: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Neighbours of ``mask``: exchanges by rank of benefit per cost, shifts of steps in between."""
        exchanges, shifts = list(self._exchanges(mask, benefit)), list(self._shifts(mask, rng))
        count = 0
        while (exchanges or shifts) and count < self._options.moves:
            for source in (exchanges, exchanges, shifts):
                if source:
                    count += 1
                    yield self.clean(source.pop(0))

    def _exchanges(self, mask: np.ndarray, benefit: np.ndarray) -> Iterator[np.ndarray]:
        wished = self.wished(mask)
        weights = self._cost.weights(wished)
        value = benefit / np.maximum(weights, 1e-6)
        closed = np.flatnonzero((~mask & (weights > 1e-6)).reshape(-1)).tolist()
        opened = [entry for entry in np.flatnonzero(mask.reshape(-1)).tolist() if entry >= mask.shape[1]]
        adds = sorted(closed, key=lambda entry: -value.reshape(-1)[entry])[: self._options.adds]
        drops = sorted(opened, key=lambda entry: value.reshape(-1)[entry])
        for skip in range(self._options.drops):
            for add in adds:
                trial = self._opened(mask, add)
                fitted = self._fitted(trial, [d for d in drops[skip:] if d // mask.shape[1] != add // mask.shape[1]])
                if fitted is not None:
                    yield fitted

    def _opened(self, mask: np.ndarray, entry: int) -> np.ndarray:
        trial, (step, block) = mask.copy(), divmod(entry, mask.shape[1])
        trial[step] = True if block == mask.shape[1] - 1 else trial[step]
        trial[step, block] = True
        return trial

    def _fitted(self, trial: np.ndarray, drops: list[int]) -> np.ndarray | None:
        for entry in drops:
            if self.kept(trial) <= self._room:
                return trial
            trial.reshape(-1)[entry] = False
        return trial if self.kept(trial) <= self._room else None

    def _shifts(self, mask: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
        pairs = [
            (step, to)
            for step in np.flatnonzero(mask[1:, _LAST]) + 1
            for to in (step - 1, step + 1)
            if 0 < to < len(mask) and not mask[to, _LAST]
        ]
        for step, to in rng.permutation(pairs).tolist() if pairs else []:
            trial = mask.copy()
            trial[to], trial[step] = mask[step], False
            if self.kept(trial) <= self._room:
                yield trial

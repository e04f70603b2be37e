"""Polish: exchanges that the gradient proposes and real runs decide, at a fixed ratio.

1. One backward pass through the whole chain tells, to first order, what every closed entry (step, block) would gain and
   every open one would lose.
2. Moves (search/moves.py) are tried in the order of what they promise; the first that improves the score on the judge's
   images is taken, and the gradient is found anew.
3. Where none of ``moves`` improves, some of them are made unseen from the best mask so far, and the climb begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dipgo_deploy.search.calibration import Judge
from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.moves import Moves

__all__ = ["PolishOptions", "Polished", "polish"]

Gradient = Callable[[np.ndarray], np.ndarray]
"""From hard gates (steps, blocks) to the gradient of the loss by every gate."""


@dataclass(frozen=True)
class PolishOptions:
    """``moves`` tried at most after one backward pass; ``kicks`` made unseen where none of them helped."""

    moves: int = 32
    kicks: int = 2
    least_gain_db: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Polished:
    """The best mask (steps, blocks) so far, its score in dB, and the full trajectories spent by the judge."""

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
    """Improve ``mask`` for as long as there are moves, to masks that prune at least ``ratio``.

    Yields the best mask after every climb of one step: stop when enough is spent. The first one yielded is ``mask``,
    without entries that live for nothing, whatever it prunes.
    """
    rng, moves = np.random.default_rng(options.seed), Moves(judge.graph, cost, ratio)
    mask = moves.clean(mask)
    best, score = mask, judge.score(moves.sets(mask))
    best_score = score
    while True:
        yield Polished(best, best_score, judge.spent)
        trials = list(islice(moves.around(mask, -gradient(moves.wished(mask)), rng), options.moves))
        if not trials:
            return
        found = None
        for trial in trials:
            reached = judge.score(moves.sets(trial))
            if reached > score + options.least_gain_db:
                found = trial, reached
                break
        if found is None:
            found = _kicked(best, moves, judge, rng, options)
        mask, score = found
        if score > best_score and moves.fits(mask):
            best, best_score = mask, score


def _kicked(
    mask: np.ndarray, moves: Moves, judge: Judge, rng: np.random.Generator, options: PolishOptions
) -> tuple[np.ndarray, float]:
    """``mask`` after some moves that chance proposes, and its score."""
    for _ in range(options.kicks):
        trials = list(islice(moves.around(mask, rng.standard_exponential(mask.shape), rng), 6))
        if trials:
            mask = trials[rng.integers(len(trials))]
    return mask, judge.score(moves.sets(mask))

"""Polish: exchanges that the gradient proposes and real runs decide, at a fixed ratio.

1. One backward pass through the whole chain tells, to first order, what every closed entry (step, block) would gain and
   every open one would lose.
2. Moves (search/moves.py) are tried in the order of what they promise; the first that improves the mean PSNR of the
   panel's images is taken, and the gradient is found anew. A move that fails on the panel's first images is let go.
3. Where none of ``moves`` improves, some of them are made unseen from the best mask so far, and the climb begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.moves import Moves
from dipgo_deploy.search.panel import Panel

__all__ = ["PolishOptions", "Polished", "polish"]

Gradient = Callable[[np.ndarray], np.ndarray]
"""From hard gates (steps, blocks) to the gradient of the loss by every gate."""


@dataclass(frozen=True)
class PolishOptions:
    """``moves`` tried at most after one backward pass; ``kicks`` made unseen where none of them helped."""

    moves: int = 100
    kicks: int = 2
    least_gain_db: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Polished:
    """The best mask (steps, blocks) so far, its mean PSNR in dB, and the full trajectories spent by the panel."""

    mask: np.ndarray
    score_db: float
    spent: float


def polish(
    mask: np.ndarray,
    ratio: float,
    panel: Panel,
    cost: GateCost,
    gradient: Gradient,
    options: PolishOptions = PolishOptions(),
) -> Iterator[Polished]:
    """Improve ``mask`` for as long as there are moves, to masks that prune at least ``ratio``.

    Yields the best mask after every climb of one step: stop when enough is spent. The first one yielded is ``mask``,
    without entries that live for nothing, whatever it prunes.
    """
    rng, moves = np.random.default_rng(options.seed), Moves(panel.graph, cost, ratio)
    mask = moves.clean(mask)
    values = panel.psnr_db(moves.sets(mask))
    best, best_values = mask, values
    while True:
        panel.settle()
        yield Polished(best, float(best_values.mean()), panel.spent)
        trials = list(islice(moves.around(mask, -gradient(moves.wished(mask)), rng), options.moves))
        if not trials:
            return
        for trial in trials:
            found = panel.better(moves.sets(trial), values, options.least_gain_db)
            if found is not None:
                mask, values = trial, found
                break
        else:
            mask = _kicked(best, moves, rng, options)
            values = panel.psnr_db(moves.sets(mask))
        if values.mean() > best_values.mean() and moves.fits(mask):
            best, best_values = mask, values


def _kicked(mask: np.ndarray, moves: Moves, rng: np.random.Generator, options: PolishOptions) -> np.ndarray:
    """``mask`` after some moves that chance proposes."""
    for _ in range(options.kicks):
        trials = list(islice(moves.around(mask, rng.standard_exponential(mask.shape), rng), 6))
        if trials:
            mask = trials[rng.integers(len(trials))]
    return mask

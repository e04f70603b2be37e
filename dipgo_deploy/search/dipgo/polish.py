"""Polish: exchanges that the gradient proposes and real runs decide, at a fixed ratio.

1. One backward pass through the whole chain gives, to first order, the gain of every closed entry (step, block) and the
   loss of every open entry.
2. Moves (moves.py) are tried in order of estimated gain. The first move that improves the mean PSNR is taken, and
   the gradient is computed again. A move that fails on the images of the first stage is dropped.
3. If none of ``moves`` improves, some moves are made without evaluation from the best mask so far. Then the climb
   begins again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.dipgo.moves import Moves
from dipgo_deploy.search.evaluator import StagedEvaluator

__all__ = ["PolishOptions", "Polished", "polish"]

Gradient = Callable[[np.ndarray], np.ndarray]
"""From hard gates (steps, blocks) to the gradient of the loss by every gate."""


@dataclass(frozen=True)
class PolishOptions:
    """``moves``: most moves tried after one backward pass. ``kicks``: moves made without evaluation if none helped."""

    moves: int = 100
    kicks: int = 2
    least_gain_db: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Polished:
    """The best mask (steps, blocks) so far, its mean PSNR in dB, and the cost in full trajectories of one image."""

    mask: np.ndarray
    score_db: float
    search_cost: float


def polish(
    mask: np.ndarray,
    ratio: float,
    evaluator: StagedEvaluator,
    cost: GateCost,
    gradient: Gradient,
    options: PolishOptions = PolishOptions(),
) -> Iterator[Polished]:
    """Improve a mask as long as there are moves. The caller stops iterating when the budget is used.

    Args:
        mask: where to start, (steps, blocks).
        ratio: pruned share that every result keeps.
        evaluator: gives the PSNR of schedules.
        cost: cost of gates.
        gradient: see Gradient.
        options: see PolishOptions.

    Yields:
        The best mask after every step of a climb. The first is ``mask`` without dead entries, at any ratio.
    """
    rng, moves = np.random.default_rng(options.seed), Moves(evaluator.graph, cost, ratio)
    mask = moves.clean(mask)
    values = evaluator.psnr_db(moves.sets(mask))
    best, best_values = mask, values
    while True:
        evaluator.settle()
        yield Polished(best, float(best_values.mean()), evaluator.search_cost)
        trials = list(islice(moves.around(mask, -gradient(moves.opened(mask)), rng), options.moves))
        if not trials:
            return
        for trial in trials:
            better = evaluator.better(moves.sets(trial), values, options.least_gain_db)
            if better is not None:
                mask, values = trial, better
                break
        else:
            mask = _kicked(best, moves, rng, options)
            values = evaluator.psnr_db(moves.sets(mask))
        if values.mean() > best_values.mean() and moves.fits(mask):
            best, best_values = mask, values


def _kicked(mask: np.ndarray, moves: Moves, rng: np.random.Generator, options: PolishOptions) -> np.ndarray:
    """``mask`` after some random moves."""
    for _ in range(options.kicks):
        trials = list(islice(moves.around(mask, rng.standard_exponential(mask.shape), rng), 6))
        if trials:
            mask = trials[rng.integers(len(trials))]
    return mask

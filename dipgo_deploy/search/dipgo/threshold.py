"""From a pruner's scores to compute sets of any ratio (DiP-GO, Algorithm 1), in well under a second.

Entries (step, block) are ranked. Every prefix of the ranking is a candidate, priced without dependent blocks. Kept
compute grows with the prefix, so the requested ratio is found by bisection. One more entry may bring in a whole step.
If neither side is then within the tolerance, later entries that fit are taken instead.
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.candidate import Candidate, ComputeSets, sets_from_mask
from dipgo_deploy.search.cost import Pricer
from dipgo_deploy.search.dipgo.options import Order
from dipgo_deploy.search.options import TOLERANCE

__all__ = ["candidate_of_ratio", "mask_of_ratio", "sets_of"]

_BAND = 0.05


def candidate_of_ratio(
    scores: np.ndarray, graph: BlockGraph, pricer: Pricer, ratio: float, order: Order = "bisection"
) -> Candidate:
    """Cut scores at a ratio.

    Args:
        scores: probability to keep, (steps, blocks).
        graph: blocks of the model.
        pricer: prices of compute sets.
        ratio: pruned share to reach.
        order: how entries are ranked.

    Returns:
        The candidate. Step 0 computes everything.

    Raises:
        UsageError: an unknown order.
    """
    if order not in get_args(Order):
        raise UsageError(f"order {order!r} is unknown: choose {', '.join(get_args(Order))}")
    best = mask_of_ratio(scores, graph, pricer, ratio, order)
    computed = sets_of(best, graph, pricer)
    return Candidate(computed, pricer.ratio(computed), {"order": order})


def mask_of_ratio(
    scores: np.ndarray, graph: BlockGraph, pricer: Pricer, ratio: float, order: Order = "bisection"
) -> np.ndarray:
    """Like ``candidate_of_ratio``, but returns the chosen entries (steps, blocks), including dead entries."""
    ranked = _by_score(scores) if order == "bisection" else _by_band(scores)
    blank = np.zeros(scores.shape, dtype=bool)
    blank[0] = True
    kept = 1 - ratio

    def prefix(count: int) -> np.ndarray:
        mask = blank.copy()
        mask.reshape(-1)[ranked[:count]] = True
        return mask

    low, high = 0, len(ranked)  # prefix(low) keeps at most the requested compute, prefix(high) at least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _kept(prefix(middle), graph, pricer) <= kept else (low, middle)
    below, above = prefix(low), prefix(high)
    if kept - _kept(below, graph, pricer) > TOLERANCE < _kept(above, graph, pricer) - kept:
        below = _filled(below, ranked[high:], graph, pricer, kept)
    return min((below, above), key=lambda mask: abs(_kept(mask, graph, pricer) - kept))


def sets_of(mask: np.ndarray, graph: BlockGraph, pricer: Pricer) -> ComputeSets:
    """Compute sets of a mask (steps, blocks) without blocks that their step does not need. Step 0 is full."""
    steps = sets_from_mask(mask, graph.block_names)
    return [frozenset(graph.block_names), *(pricer.live(step) for step in steps[1:])]


def _kept(mask: np.ndarray, graph: BlockGraph, pricer: Pricer) -> float:
    computed = sets_of(mask, graph, pricer)
    return sum(map(pricer.kept_share, computed)) / len(computed)


def _by_score(scores: np.ndarray) -> np.ndarray:
    """Flat indices of all entries after step 0, highest score first. Ties by step, then block."""
    flat = np.arange(scores.shape[1], scores.size)
    ranked: np.ndarray = flat[np.argsort(-scores.reshape(-1)[flat], kind="stable")]
    return ranked


def _by_band(scores: np.ndarray) -> np.ndarray:
    """Like ``_by_score``, but within a band of scores the last blocks are pruned first, and then the lowest scores."""
    blocks = np.arange(scores.shape[1], scores.size) % scores.shape[1]
    flat = scores.reshape(-1)[scores.shape[1] :]
    bands = np.floor(flat / _BAND)
    ranked: np.ndarray = np.lexsort((-flat, blocks, -bands)) + scores.shape[1]
    return ranked


def _filled(mask: np.ndarray, entries: np.ndarray, graph: BlockGraph, pricer: Pricer, kept: float) -> np.ndarray:
    """``mask`` with more ``entries``, in turn, as long as they fit below ``kept`` and until it is near enough."""
    for entry in entries:
        if kept - _kept(mask, graph, pricer) <= TOLERANCE:
            break
        trial = mask.copy()
        trial.reshape(-1)[entry] = True
        if _kept(trial, graph, pricer) <= kept:
            mask = trial
    return mask

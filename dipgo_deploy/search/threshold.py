"""From a pruner's scores to compute sets of any ratio (DiP-GO, Algorithm 1), in well under a second.

Entries (step, block) enter in an order; each prefix of it is a candidate, priced with dependent blocks removed. Kept
compute grows with the prefix, so the asked ratio is found by bisection. Where one more entry brings in a whole step at
once and neither side is within the tolerance, later entries that fit are taken instead.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.candidate import Candidate, ComputeSets, sets_from_mask
from dipgo_deploy.search.options import TOLERANCE
from dipgo_deploy.search.pricing import Pricer

__all__ = ["Order", "candidate_of_ratio", "mask_of_ratio", "sets_of"]

Order = Literal["bisection", "greedy"]
"""``bisection``: by score alone, the paper's text. ``greedy``: bands of score, then blocks from last to first, the
reference code."""

_BAND = 0.05


def candidate_of_ratio(
    scores: np.ndarray, graph: BlockGraph, pricer: Pricer, ratio: float, order: Order = "bisection"
) -> Candidate:
    """The compute sets that ``scores`` (steps, blocks; the probability to keep) give at ``ratio``.

    Step 0 computes everything. Raises UsageError for an unknown order.
    """
    if order not in get_args(Order):
        raise UsageError(f"order {order!r} is unknown: choose {', '.join(get_args(Order))}")
    best = mask_of_ratio(scores, graph, pricer, ratio, order)
    computed = sets_of(best, graph, pricer)
    return Candidate(computed, pricer.ratio(computed), {"order": order})


def mask_of_ratio(
    scores: np.ndarray, graph: BlockGraph, pricer: Pricer, ratio: float, order: Order = "bisection"
) -> np.ndarray:
    """As ``candidate_of_ratio``: the entries (steps, blocks) that are in, those that turn out dead included."""
    ranked = _by_score(scores) if order == "bisection" else _by_band(scores)
    blank = np.zeros(scores.shape, dtype=bool)
    blank[0] = True
    kept = 1 - ratio

    def prefix(count: int) -> np.ndarray:
        mask = blank.copy()
        mask.reshape(-1)[ranked[:count]] = True
        return mask

    low, high = 0, len(ranked)  # prefix(low) keeps at most what is asked, prefix(high) at least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _kept(prefix(middle), graph, pricer) <= kept else (low, middle)
    below, above = prefix(low), prefix(high)
    if kept - _kept(below, graph, pricer) > TOLERANCE < _kept(above, graph, pricer) - kept:
        below = _filled(below, ranked[high:], graph, pricer, kept)
    return min((below, above), key=lambda mask: abs(_kept(mask, graph, pricer) - kept))


def sets_of(mask: np.ndarray, graph: BlockGraph, pricer: Pricer) -> ComputeSets:
    """Compute sets of a mask (steps, blocks) without what no prediction of its own step needs; step 0 is full."""
    steps = sets_from_mask(mask, graph.block_names)
    return [frozenset(graph.block_names), *(pricer.live(step) for step in steps[1:])]


def _kept(mask: np.ndarray, graph: BlockGraph, pricer: Pricer) -> float:
    computed = sets_of(mask, graph, pricer)
    return sum(map(pricer.kept_share, computed)) / len(computed)


def _by_score(scores: np.ndarray) -> np.ndarray:
    """Flat indices of all entries after step 0, highest score first; ties by step, then block."""
    flat = np.arange(scores.shape[1], scores.size)
    ranked: np.ndarray = flat[np.argsort(-scores.reshape(-1)[flat], kind="stable")]
    return ranked


def _by_band(scores: np.ndarray) -> np.ndarray:
    """As ``_by_score``, but within a band of scores the last blocks are given up first, and then the lowest score."""
    blocks = np.arange(scores.shape[1], scores.size) % scores.shape[1]
    flat = scores.reshape(-1)[scores.shape[1] :]
    bands = np.floor(flat / _BAND)
    ranked: np.ndarray = np.lexsort((-flat, blocks, -bands)) + scores.shape[1]
    return ranked


def _filled(mask: np.ndarray, entries: np.ndarray, graph: BlockGraph, pricer: Pricer, kept: float) -> np.ndarray:
    """``mask`` with those of ``entries``, in turn, that still fit below ``kept``, until it is near enough."""
    for entry in entries:
        if kept - _kept(mask, graph, pricer) <= TOLERANCE:
            break
        trial = mask.copy()
        trial.reshape(-1)[entry] = True
        if _kept(trial, graph, pricer) <= kept:
            mask = trial
    return mask

"""Random schedules: coin flips per step and block. The control that every search has to beat, and food for tests."""

from __future__ import annotations

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.candidate import Candidate, ComputeSets, sets_from_mask
from dipgo_deploy.search.options import TOLERANCE, SearchOptions
from dipgo_deploy.search.pricing import Pricer

__all__ = ["random_schedule", "random_search"]

_FLIPS = 2000
"""Single entries tried before a ratio counts as out of reach."""


def random_schedule(
    graph: BlockGraph, contract: Contract, kind: Kind, rng: np.random.Generator, keep: float
) -> Schedule:
    """A valid schedule that computes each block of each step, the prediction included, with probability ``keep``.

    Step 0 computes everything, so every reuse has something to hold. What is computed may still be dead.
    """
    rows = rng.random((contract.sampler.calls, len(graph.blocks))) < keep
    rows[0] = True
    compute = tuple(tuple(row) for row in rows.tolist())
    origin = {"method": "random", "keep": str(keep)}
    return Schedule(contract, graph.granularity, kind, graph.block_names, compute, origin=origin)


def random_search(graph: BlockGraph, steps: int, options: SearchOptions) -> Candidate:
    """A random schedule of the asked ratio: one coin per entry, then the probability and single entries are fitted.

    The coins are drawn once; raising the probability only ever adds entries, so the ratio is met by bisection up to
    what one entry weighs. Where that is not near enough, random entries are flipped as long as it helps.
    """
    rng = np.random.default_rng(options.seed)
    coins = rng.random((steps, len(graph.blocks)))
    coins[0] = -1.0
    pricer = Pricer(graph, options.kind, options.cost)
    rows = _bisect(graph, pricer, coins, options.ratio)
    rows = _flip(graph, pricer, rows, options.ratio, rng)
    computed = _sets(graph, rows)
    return Candidate(computed, pricer.ratio(computed), {"computed_entries": str(int(rows.sum()))})


def _bisect(graph: BlockGraph, pricer: Pricer, coins: np.ndarray, ratio: float) -> np.ndarray:
    """Of the nested sets ``coins <= threshold``, the nearest of those that a bisection visits."""
    thresholds = np.unique(coins)
    low, high = 0, len(thresholds) - 1
    best = coins <= 1.0
    gap = abs(pricer.ratio(_sets(graph, best)) - ratio)
    while low <= high and gap > 0:
        middle = (low + high) // 2
        rows = coins <= thresholds[middle]
        reached = pricer.ratio(_sets(graph, rows))
        if abs(reached - ratio) < gap:
            best, gap = rows, abs(reached - ratio)
        low, high = (middle + 1, high) if reached > ratio else (low, middle - 1)
    return best


def _flip(graph: BlockGraph, pricer: Pricer, rows: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    gap = abs(pricer.ratio(_sets(graph, rows)) - ratio)
    for _ in range(_FLIPS if len(rows) > 1 else 0):
        if gap <= TOLERANCE:
            break
        trial = rows.copy()
        entry = rng.integers(1, len(rows)), rng.integers(rows.shape[1])
        trial[entry] = not trial[entry]
        reached = abs(pricer.ratio(_sets(graph, trial)) - ratio)
        if reached < gap:
            rows, gap = trial, reached
    return rows


def _sets(graph: BlockGraph, rows: np.ndarray) -> ComputeSets:
    return sets_from_mask(rows, graph.block_names)

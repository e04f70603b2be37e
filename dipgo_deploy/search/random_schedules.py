"""Random schedules, and the best of several: the control that every search has to beat.

Tests use random schedules too, to exercise all code that handles schedules.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.candidate import Candidate, ComputeSets, sets_from_mask
from dipgo_deploy.search.cost import Pricer
from dipgo_deploy.search.evaluator import Evaluator
from dipgo_deploy.search.method_options import BestRandomOptions
from dipgo_deploy.search.options import TOLERANCE, SearchOptions

__all__ = ["best_of_random", "random_schedule", "random_search"]

_FLIPS = 2000
"""Number of single entries to try before a ratio counts as unreachable."""


def random_schedule(
    graph: BlockGraph, contract: Contract, kind: Kind, rng: np.random.Generator, keep: float
) -> Schedule:
    """Compute every block of every step, the prediction included, with probability ``keep``.

    Args:
        graph: blocks of the model.
        contract: sampler, steps and guidance.
        kind: what a reused block stands for.
        rng: source of the draws.
        keep: probability that a block is computed.

    Returns:
        A valid schedule. Step 0 computes everything, so every reuse has a feature to hold. Computed blocks may be dead.
    """
    rows = rng.random((contract.sampler.calls, len(graph.blocks))) < keep
    rows[0] = True
    compute = tuple(tuple(row) for row in rows.tolist())
    origin = {"method": "random", "keep": str(keep)}
    return Schedule(contract, graph.granularity, kind, graph.block_names, compute, origin=origin)


def random_search(graph: BlockGraph, steps: int, options: SearchOptions) -> Candidate:
    """Draw a random schedule of the requested ratio.

    One coin is drawn per entry. Raising the probability to compute only adds entries, so bisection meets the ratio up
    to the weight of one entry. If that is not near enough, random entries are flipped as long as flips help.

    Args:
        graph: blocks of the model.
        steps: network calls of the full run.
        options: ratio and seed.

    Returns:
        The candidate.
    """
    rng = np.random.default_rng(options.seed)
    coins = rng.random((steps, len(graph.blocks)))
    coins[0] = -1.0
    pricer = Pricer(graph, options.kind, options.latency)
    rows = _bisect(graph, pricer, coins, options.ratio)
    rows = _flip(graph, pricer, rows, options.ratio, rng)
    computed = _sets(graph, rows)
    return Candidate(computed, pricer.ratio(computed), {"computed_entries": str(int(rows.sum()))})


def _bisect(graph: BlockGraph, pricer: Pricer, coins: np.ndarray, ratio: float) -> np.ndarray:
    """The set nearest to the ratio among the nested sets ``coins <= threshold`` that a bisection visits."""
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


def best_of_random(evaluator: Evaluator, options: SearchOptions) -> Work[Candidate]:
    """Evaluate ``candidates`` random schedules, and take the best of those that reach the ratio.

    Candidate i is the schedule of method ``random`` with seed ``seed * candidates + i``, so that two seeds share none.
    A candidate that misses the ratio by more than TOLERANCE counts only if all candidates miss it.

    Args:
        evaluator: gives the score of a schedule.
        options: ratio, seed, and BestRandomOptions.

    Returns:
        A generator of Progress whose result is the candidate.
    """
    count, steps = options.settings_as(BestRandomOptions).candidates, evaluator.calibration.contract.sampler.calls
    best: tuple[tuple[bool, float], int, Candidate] | None = None
    for index in range(count):
        draw = replace(_blank(options), seed=options.seed * count + index)
        candidate = random_search(evaluator.graph, steps, draw)
        merit = abs(candidate.ratio - options.ratio) <= TOLERANCE, evaluator.score(candidate.computed)
        if best is None or merit > best[0]:
            best = merit, draw.seed, candidate
        text = f"best {best[0][1]:.2f} dB, {evaluator.search_cost:.0f} trajectories"
        yield Progress("random schedules", index + 1, count, text)
    assert best is not None, "options refuse 0 candidates"
    _, seed, chosen = best
    knobs = {"candidates": str(count), "random_seed": str(seed), **chosen.knobs}
    return replace(chosen, knobs=knobs)


def _blank(options: SearchOptions) -> SearchOptions:
    """Options of method ``random`` for the same ratio, kind and latency table."""
    return SearchOptions("random", options.ratio, options.kind, latency=options.latency)

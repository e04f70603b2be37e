"""The best of a few random schedules: what luck and a judge give, without a search."""

from __future__ import annotations

from dipgo_deploy.search.calibration import Judge
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.options import TOLERANCE, SearchOptions
from dipgo_deploy.search.random_schedule import random_search
from dipgo_deploy.search.trial import Search, Trial

__all__ = ["best_of_random"]

_CANDIDATES = 5


def best_of_random(judge: Judge, options: SearchOptions) -> Search:
    """Of ``candidates`` random schedules (5) the one with the best score among those nearest the asked ratio.

    Candidate i is what the method ``random`` gives with seed ``seed * candidates + i``, so that two seeds share none.
    One that misses the ratio by more than TOLERANCE counts only where all do.
    """
    count, steps = options.candidates or _CANDIDATES, judge.calibration.contract.sampler.calls
    best: tuple[tuple[bool, float], int, Candidate] | None = None
    for index in range(count):
        draw = SearchOptions("random", options.ratio, options.kind, options.seed * count + index, cost=options.cost)
        found = random_search(judge.graph, steps, draw)
        merit = abs(found.ratio - options.ratio) <= TOLERANCE, judge.score(found.computed)
        if best is None or merit > best[0]:
            best = merit, draw.seed, found
        yield Trial("random schedules", index + 1, count, best[0][1], judge.spent)
    assert best is not None, "options refuse 0 candidates"
    _, seed, found = best
    return Candidate(found.computed, found.ratio, {"candidates": str(count), "random_seed": str(seed), **found.knobs})

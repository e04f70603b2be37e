"""The entry point of methods that run the model: a judge and options in, a checked schedule out, as a generator."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.best_of_random import best_of_random
from dipgo_deploy.search.calibration import Judge
from dipgo_deploy.search.candidate import schedule_from_sets
from dipgo_deploy.search.dynamic_programming import dynamic_programming
from dipgo_deploy.search.evolution import evolutionary
from dipgo_deploy.search.options import SearchOptions
from dipgo_deploy.search.search import check_model, origin_of
from dipgo_deploy.search.trial import JudgedMethod, Trial

__all__ = ["search_with_model"]

_METHODS: dict[str, JudgedMethod] = {
    "best-random": best_of_random,
    "evolutionary": evolutionary,
    "dpcache": dynamic_programming,
}


def search_with_model(judge: Judge, options: SearchOptions) -> Iterator[Trial | Schedule]:
    """Search with ``options.method``; yields trials and lastly the schedule, as near to the asked ratio as it came.

    ``origin`` records what `search_schedule` records, and ``score_db`` on the judge's images, ``spent`` (full
    trajectories of one image, those before the search included) and ``seconds`` of the search. Raises UsageError for a
    method that runs no model, a kind that is not the judge's or a knob that does not fit, InputError where graph and
    contract describe different models or no block has a residual to reuse.
    """
    if options.method not in _METHODS:
        raise UsageError(f"method {options.method} does not run the model: choose one of {', '.join(_METHODS)}")
    if options.kind != judge.kind:
        raise UsageError(f"the judge scores kind {judge.kind}, kind {options.kind} was asked for: make them alike")
    check_model(judge.graph, judge.calibration.contract, options)
    start = time.perf_counter()
    found = yield from _METHODS[options.method](judge, options)
    origin = origin_of(found, options) | {
        "score_db": f"{judge.score(found.computed):.3f}",
        "spent": f"{judge.spent:.1f}",
        "seconds": f"{time.perf_counter() - start:.1f}",
    }
    yield schedule_from_sets(judge.graph, judge.calibration.contract, judge.kind, found.computed, origin)

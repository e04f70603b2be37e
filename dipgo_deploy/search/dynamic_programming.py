"""Key steps by an exact dynamic program in the manner of DPCache (arXiv 2602.22654).

1. Calibrate: one full run is recorded, and what holding the output of step i up to step j does to the final image is
   estimated for all pairs i < j (search/sensitivity.py). It is path-aware: a segment's cost depends on where its held
   output was made, and errors inside it add up as they do along a run. DPCache's own measure, features against features
   with a forecast that needs the key step before too, has a third index; a held output needs none.
2. For every number K of key steps the cheapest ones are found exactly (search/key_steps.py).
3. At key steps everything is computed. What is computed in between is the same at all other steps: nothing (the
   prediction is held: no call), the prediction alone (stem and tail on held features, as in FORA), or d blocks at each
   end besides (DeepCache's shallow branch). The costs of holding serve for all three: where features move fast the
   prediction does.
4. For each such set the numbers K whose ratio comes nearest to the asked one are drawn up, at most 3 within TOLERANCE,
   and the judge takes the best.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.search.calibration import Judge
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.key_steps import cheapest_key_steps
from dipgo_deploy.search.options import TOLERANCE, SearchOptions
from dipgo_deploy.search.sensitivity import holding_costs, random_probes, record_full_run
from dipgo_deploy.search.trial import Search, Trial

__all__ = ["dynamic_programming", "finalists"]

_PROBES = 4
"""Random images per image of the calibration; on digits-unet 16 chose no better paths."""

_DEEPEST = 2
_FINALISTS = 3


def dynamic_programming(judge: Judge, options: SearchOptions) -> Search:
    """The best of the cheapest paths near the asked ratio.

    Raises UsageError for a sampler whose steps are not linear.
    """
    costs = yield from _calibrated(judge, options.seed)
    best: tuple[float, Candidate] | None = None
    drawn = finalists(judge, options.ratio, cheapest_key_steps(costs))
    for done, finalist in enumerate(drawn, 1):
        score = judge.score(finalist.computed)
        if best is None or score > best[0]:
            best = score, finalist
        yield Trial("cheapest paths", done, len(drawn), best[0], judge.spent)
    assert best is not None, "there is a path for every number of key steps"
    return best[1]


def finalists(judge: Judge, ratio: float, paths: list[tuple[int, ...]]) -> list[Candidate]:
    """Paths with each set in between: those within TOLERANCE of ``ratio``, 3 of each set, otherwise the nearest."""
    everything = frozenset(judge.graph.block_names)
    drawn: list[Candidate] = []
    for name, between in _sets_between(judge.graph):
        found = []
        for path in paths:
            computed = [everything if step in path else between for step in range(len(paths))]
            knobs = {"between": name, "key_steps": str(len(path))}
            found.append(Candidate(computed, judge.pricer.ratio(computed), knobs))
        drawn += sorted(found, key=lambda candidate: abs(candidate.ratio - ratio))[:_FINALISTS]
    met = [candidate for candidate in drawn if abs(candidate.ratio - ratio) <= TOLERANCE]
    return met or [min(drawn, key=lambda candidate: abs(candidate.ratio - ratio))]


def _sets_between(graph: BlockGraph) -> Iterator[tuple[str, frozenset[str]]]:
    yield "nothing", frozenset()
    yield "prediction", frozenset([PREDICTION])
    names = graph.block_names[:-1]
    for depth in range(1, min(_DEEPEST, (len(names) - 1) // 2) + 1):
        yield f"{depth} at each end", frozenset((*names[:depth], *names[-depth:], PREDICTION))


def _calibrated(judge: Judge, seed: int) -> Generator[Trial, None, NDArray[np.float64]]:
    """The costs (T, T + 1) of search/key_steps.py; forward and backward passes count as one each in ``judge.spent``."""
    calibration, graph = judge.calibration, judge.graph
    sampler = _linear(calibration.contract.sampler)
    full = full_schedule(calibration.contract, graph.granularity, "output", graph.block_names)
    run = record_full_run(calibration, full, sampler)
    judge.spent += calibration.count
    costs = np.zeros((full.steps, full.steps + 1))
    for done, column in enumerate(holding_costs(run, sampler, random_probes(run, _PROBES, seed)), 1):
        costs[:, full.steps + 1 - done] = column
        judge.spent += calibration.count * (1 + _PROBES) / full.steps
        yield Trial("calibration", done, full.steps, None, judge.spent)
    return costs


def _linear(spec: SamplerSpec) -> LinearSampler:
    sampler = read_sampler(spec)
    if not isinstance(sampler, LinearSampler):
        raise UsageError(
            f"dpcache needs a sampler whose steps are linear, but {spec.class_name} {sampler.reason}: choose another "
            "sampler, or method evolutionary"
        )
    return sampler

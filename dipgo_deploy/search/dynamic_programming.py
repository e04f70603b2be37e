"""DPCache-style key steps by an exact dynamic program (arXiv 2602.22654).

1. Calibrate: one full run is recorded. The effect on the final image of holding the output of step i up to step j is
   estimated for all pairs i < j (search/sensitivity.py). It is path-aware: the cost of a segment depends on where its
   held output was made, and errors inside it add up as they do along a run. DPCache measures features with a forecast
   that needs the key step before too, so its measure has a third index. A held output needs none.
2. For every number K of key steps the cheapest key steps are found exactly.
3. At key steps everything is computed. All other steps compute the same set: nothing (the prediction is held, so there
   is no call), the prediction alone (stem and tail on held features, as in FORA), or also d blocks at each end
   (DeepCache's shallow branch). The costs of holding serve for all three: where features move fast, so does the
   prediction.
4. For each such set the numbers K nearest to the requested ratio are finalists, at most 3 within TOLERANCE. The
   evaluator chooses the best finalist.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.evaluator import Evaluator
from dipgo_deploy.search.options import TOLERANCE, SearchOptions
from dipgo_deploy.search.sensitivity import holding_costs, random_probes, record_full_run

__all__ = ["cheapest_key_steps", "dynamic_programming", "finalists"]

_PROBES = 4
"""Random images per image of the calibration. On digits-unet 16 chose no better paths."""

_DEEPEST = 2
_FINALISTS = 3


def dynamic_programming(evaluator: Evaluator, options: SearchOptions) -> Work[Candidate]:
    """Find the cheapest paths near the requested ratio, and evaluate them.

    Args:
        evaluator: gives the score of a schedule, and holds the calibration.
        options: ratio and seed.

    Returns:
        A generator of Progress whose result is the best candidate.

    Raises:
        UsageError: the sampler's steps are not linear.
    """
    costs = yield from _holding_costs(evaluator, options.seed)
    best: tuple[float, Candidate] | None = None
    candidates = finalists(evaluator, options.ratio, cheapest_key_steps(costs))
    for done, finalist in enumerate(candidates, 1):
        score = evaluator.score(finalist.computed)
        if best is None or score > best[0]:
            best = score, finalist
        text = f"best {best[0]:.2f} dB, {evaluator.search_cost:.0f} trajectories"
        yield Progress("cheapest paths", done, len(candidates), text)
    assert best is not None, "there is a path for every number of key steps"
    return best[1]


def finalists(evaluator: Evaluator, ratio: float, paths: list[tuple[int, ...]]) -> list[Candidate]:
    """Combine paths with each set that other steps may compute.

    Args:
        evaluator: has blocks and prices.
        ratio: requested ratio.
        paths: key steps, for every number of key steps.

    Returns:
        Candidates within TOLERANCE of ``ratio``, at most 3 per set. If there is none, the nearest candidate.
    """
    everything = frozenset(evaluator.graph.block_names)
    nearest: list[Candidate] = []
    for name, between in _sets_between(evaluator.graph):
        candidates = []
        for path in paths:
            computed = [everything if step in path else between for step in range(len(paths))]
            knobs = {"between": name, "key_steps": str(len(path))}
            candidates.append(Candidate(computed, evaluator.pricer.ratio(computed), knobs))
        nearest += sorted(candidates, key=lambda candidate: abs(candidate.ratio - ratio))[:_FINALISTS]
    reached = [candidate for candidate in nearest if abs(candidate.ratio - ratio) <= TOLERANCE]
    return reached or [min(nearest, key=lambda candidate: abs(candidate.ratio - ratio))]


def _sets_between(graph: BlockGraph) -> Iterator[tuple[str, frozenset[str]]]:
    yield "nothing", frozenset()
    yield "prediction", frozenset([PREDICTION])
    names = graph.block_names[:-1]
    for depth in range(1, min(_DEEPEST, (len(names) - 1) // 2) + 1):
        yield f"{depth} at each end", frozenset((*names[:depth], *names[-depth:], PREDICTION))


def _holding_costs(evaluator: Evaluator, seed: int) -> Work[NDArray[np.float64]]:
    """The costs (T, T + 1) that ``cheapest_key_steps`` reads. Each forward and backward pass adds 1 to the cost."""
    calibration, graph = evaluator.calibration, evaluator.graph
    sampler = _linear(calibration.contract.sampler)
    full = full_schedule(calibration.contract, graph.granularity, "output", graph.block_names)
    run = record_full_run(calibration, full, sampler)
    evaluator.search_cost += calibration.count
    costs = np.zeros((full.steps, full.steps + 1))
    for done, column in enumerate(holding_costs(run, sampler, random_probes(run, _PROBES, seed)), 1):
        costs[:, full.steps + 1 - done] = column
        evaluator.search_cost += calibration.count * (1 + _PROBES) / full.steps
        yield Progress("calibration", done, full.steps, f"{evaluator.search_cost:.0f} trajectories")
    return costs


def _linear(spec: SamplerSpec) -> LinearSampler:
    sampler = read_sampler(spec)
    if not isinstance(sampler, LinearSampler):
        raise UsageError(
            f"dpcache needs a sampler whose steps are linear, but {spec.class_name} {sampler.reason}: choose another "
            "sampler, or method evolutionary"
        )
    return sampler


def cheapest_key_steps(cost: NDArray[np.float64]) -> list[tuple[int, ...]]:
    """The K key steps of the least total cost, for K = 1 to T. Entry K - 1 has K steps, step 0 first.

    ``cost`` (T, T + 1) holds at [i, j] the cost of computing step i and then no step before j. j = T means no further
    step. Only j > i is read. With best(K, j) the least cost of K segments that end at j,
    best(K, j) = min over i < j of best(K - 1, i) + cost[i, j]. All K together take O(T^3).
    """
    steps = len(cost)
    segments = np.full((steps + 1, steps + 1), np.inf)
    for step in range(steps):
        segments[step, step + 1 :] = cost[step, step + 1 :]
    best = np.full(steps + 1, np.inf)
    best[0] = 0.0
    came_from: list[NDArray[np.intp]] = []
    for _ in range(steps):
        totals = best[:, None] + segments
        came_from.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    return [_walk_back(came_from[:count], steps) for count in range(1, steps + 1)]


def _walk_back(came_from: list[NDArray[np.intp]], end: int) -> tuple[int, ...]:
    path = []
    for origins in reversed(came_from):
        end = int(origins[end])
        path.append(end)
    return tuple(reversed(path))

"""From timed calls to the coefficients of a latency table: least squares without negative costs.

1. An observation is one call of one program at its place in the trajectory, the median over the rounds.
2. Squared errors are weighed by 1 / time, between absolute errors (small calls would not matter) and relative ones
   (large calls would not).
3. The cache's size is that of a ladder, from 0 to more than any program touches, that leaves the least error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.latency import LatencyCosts
from dipgo_deploy.core.program import Combine, Program, Run
from dipgo_deploy.core.tensors import MIB
from dipgo_deploy.lowering.latency import combine_features, lost_mib, run_features

__all__ = ["TimedProgram", "fit_latencies"]

_LADDER = 9
"""Cache sizes that are tried, each twice the one before; the largest stands for a cache that loses nothing."""


@dataclass(frozen=True)
class TimedProgram:
    """A program, the median time in ms of each of its calls, and of a whole run."""

    program: Program
    calls_ms: tuple[float, ...]
    whole_ms: float


def fit_latencies(timed: Sequence[TimedProgram], blocks: BlockGraph, batch: int) -> LatencyCosts:
    """Costs for ``batch`` images from what was timed."""
    plain = np.concatenate([run_features(one.program, blocks, batch) for one in timed])
    runs_ms = np.concatenate([_times(one, Run) for one in timed])
    found = []
    for cache in _cache_sizes(timed):
        lost = np.concatenate([lost_mib(one.program, cache) for one in timed])
        features = np.column_stack([plain, lost])
        costs = _non_negative(features, runs_ms)
        found.append((_error(features @ costs, runs_ms), cache, costs, features))
    _, cache, costs, features = min(found, key=lambda one: one[0])
    *pieces, call, border, cold = (float(cost) for cost in costs)
    combines = _non_negative(
        np.concatenate([combine_features(one.program, batch) for one in timed]),
        np.concatenate([_times(one, Combine) for one in timed]),
    )
    return LatencyCosts(
        pieces_ms=tuple(pieces),
        call_ms=call,
        border_ms_per_mib=border,
        cold_ms_per_mib=cold,
        cache_bytes=cache,
        combine_ms=float(combines[0]),
        combine_ms_per_mib=float(combines[1]),
        whole_over_calls=sum(one.whole_ms for one in timed) / sum(sum(one.calls_ms) for one in timed),
        spread=float(np.sqrt(np.mean((features @ costs / runs_ms - 1) ** 2))),
    )


def _times(one: TimedProgram, kind: type) -> NDArray[np.float64]:
    pairs = zip(one.program.calls, one.calls_ms, strict=True)
    return np.array([ms for call, ms in pairs if isinstance(call, kind)], dtype=np.float64)


def _cache_sizes(timed: Sequence[TimedProgram]) -> list[int]:
    """From nothing to the weights of the largest program's graphs, in powers of two."""
    most = max(sum(graph.weight_bytes for graph in one.program.graphs) for one in timed)
    return [0, *(int(2 * most / 2**step) // MIB * MIB + MIB for step in range(_LADDER))]


def _non_negative(features: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    fit = LinearRegression(fit_intercept=False, positive=True)
    costs: NDArray[np.float64] = fit.fit(features, times, sample_weight=1 / times).coef_
    return costs


def _error(found: NDArray[np.float64], times: NDArray[np.float64]) -> float:
    return float(np.mean((found - times) ** 2 / times))

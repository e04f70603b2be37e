"""The cheapest steps to compute, for every number of them: an exact dynamic program over segments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["cheapest_key_steps"]


def cheapest_key_steps(cost: NDArray[np.float64]) -> list[tuple[int, ...]]:
    """For K = 1 to T key steps, those of the least total cost; entry K - 1 has K of them, step 0 first.

    ``cost`` (T, T + 1) holds at [i, j] what it costs to compute step i and, of the steps after it, next step j; j = T
    means none. Only j > i is read. With best(K, j) the least cost of K segments that end at j,
    best(K, j) = min over i < j of best(K - 1, i) + cost[i, j], in O(T^3) for all K together.
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

"""Who survives in NSGA-II (Deb et al. 2002): non-dominated sorting, crowding distance, constrained domination."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["crowding_distance", "non_dominated_fronts", "survivors"]

Floats = NDArray[np.float64]


def non_dominated_fronts(points: Floats) -> list[NDArray[np.intp]]:
    """Indices of ``points`` (n, objectives), all to be minimised, front by front, ascending inside each.

    A point is in the first front if no other is as good in all objectives and better in one; in the second if only
    points of the first are; and so on.
    """
    no_worse = np.all(points[:, None] <= points[None], axis=2)
    dominates: NDArray[np.bool_] = np.logical_and(no_worse, np.any(points[:, None] < points[None], axis=2))
    left, fronts = np.ones(len(points), dtype=bool), []
    while left.any():
        front = left & ~dominates[left].any(axis=0)
        fronts.append(np.flatnonzero(front))
        left &= ~front
    return fronts


def crowding_distance(points: Floats) -> Floats:
    """How far apart each point's neighbours in one front are, summed over objectives in units of the front's range.

    The ends of a front are infinitely far out, so that it keeps its extent.
    """
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def survivors(points: Floats, violations: Floats, count: int) -> list[int]:
    """The ``count`` fittest of ``points``, the fittest first.

    Points that violate nothing go before those that do: by front, in a front the loneliest first. Those that violate
    follow, the least violation first.
    """
    allowed = np.flatnonzero(violations <= 0)
    order: list[int] = []
    for front in non_dominated_fronts(points[allowed]):
        members = allowed[front]
        order += members[np.argsort(-crowding_distance(points[members]), kind="stable")].tolist()
    others = np.flatnonzero(violations > 0)
    order += others[np.argsort(violations[others], kind="stable")].tolist()
    return order[:count]

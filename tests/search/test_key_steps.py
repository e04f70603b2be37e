"""The dynamic program finds what trying every path finds."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from dipgo_deploy.search.dynamic_programming import cheapest_key_steps


def total(cost: np.ndarray, path: tuple[int, ...]) -> float:
    return sum(float(cost[i, j]) for i, j in pairwise((*path, len(cost))))


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("seed", range(4))
def test_every_number_of_key_steps_gets_its_cheapest_path(steps: int, seed: int) -> None:
    cost = np.random.default_rng(seed).random((steps, steps + 1))
    paths = cheapest_key_steps(cost)
    assert len(paths) == steps
    for count, path in enumerate(paths, 1):
        every = [(0, *rest) for rest in combinations(range(1, steps), count - 1)]
        assert path == min(every, key=lambda one: total(cost, one))


def test_equal_steps_are_spread_evenly() -> None:
    """Holding n steps costs n squared: the cheapest segments are equal."""
    cost = np.array([[max(0, j - i - 1) ** 2 for j in range(13)] for i in range(12)], dtype=np.float64)
    assert [cheapest_key_steps(cost)[count - 1] for count in (2, 3, 4)] == [(0, 6), (0, 4, 8), (0, 3, 6, 9)]


def test_what_lies_below_the_diagonal_is_not_read() -> None:
    cost = np.full((3, 4), np.nan)
    cost[np.triu_indices(3, 1, 4)] = 1.0
    assert cheapest_key_steps(cost)[-1] == (0, 1, 2)

"""Fronts against their definition, and who survives."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.search.genome import crowding_distance, non_dominated_fronts, survivors


def dominates(one: np.ndarray, other: np.ndarray) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_fronts_are_what_brute_force_finds(objectives: int, seed: int) -> None:
    """Few distinct values, so that there are ties and equal points."""
    points = np.random.default_rng(seed).integers(0, 5, (30, objectives)).astype(np.float64)
    left = set(range(30))
    for front in non_dominated_fronts(points):
        best = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        assert front.tolist() == sorted(best)
        left -= best
    assert not left


def test_no_points_have_no_fronts() -> None:
    assert non_dominated_fronts(np.empty((0, 2))) == []


def test_crowding_is_the_distance_of_neighbours_and_infinite_at_the_ends() -> None:
    points = np.array([[0.0, 10.0], [1.0, 5.0], [4.0, 4.0], [10.0, 0.0]])
    assert crowding_distance(points) == pytest.approx([np.inf, 0.4 + 0.6, 0.9 + 0.5, np.inf])
    assert crowding_distance(np.zeros((3, 1))).tolist() == [np.inf, 0.0, np.inf]


def test_survivors_are_the_allowed_by_front_and_loneliness_then_the_least_violating() -> None:
    points = np.array([[0.0, 10.0], [1.0, 5.0], [4.0, 4.0], [10.0, 0.0], [11.0, 11.0], [-9.0, -9.0], [-8.0, -8.0]])
    violations = np.array([0.0, -1.0, 0.0, 0.0, 0.0, 0.5, 0.25])
    assert survivors(points, violations, 7) == [0, 3, 2, 1, 4, 6, 5]
    assert survivors(points, violations, 3) == [0, 3, 2]

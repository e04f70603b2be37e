"""Any ratio from one set of scores, on the block graphs of the models that ship."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.search.candidate import schedule_from_sets
from dipgo_deploy.search.cost import Pricer
from dipgo_deploy.search.dipgo.threshold import candidate_of_ratio, mask_of_ratio, sets_of
from dipgo_deploy.search.options import TOLERANCE
from tests.search.graphs import chain_like, contract_of, unet_like

RATIOS = [round(0.3 + 0.05 * i, 2) for i in range(13)]
GRAPHS = [
    ("digits-unet", "stage", "output"),
    ("digits-dit", "stage", "output"),
    ("digits-dit", "stage", "residual"),
    ("digits-dit", "branch", "residual"),
]


def scores_of(shape: tuple[int, int], pattern: str) -> np.ndarray:
    """Scores as training leaves them: without order, whole steps at a time, or all about the same."""
    rng = np.random.default_rng(3)
    if pattern == "steps":
        return np.clip(np.repeat(rng.random((shape[0], 1)), shape[1], axis=1) + 0.01 * rng.random(shape), 0, 1)
    return rng.random(shape) if pattern == "random" else np.full(shape, 0.73)


@pytest.mark.parametrize("order", ["bisection", "greedy"])
@pytest.mark.parametrize("pattern", ["random", "steps", "equal"])
@pytest.mark.parametrize(("name", "granularity", "kind"), GRAPHS)
def test_every_ratio_is_reached(traced, name, granularity, kind, pattern, order) -> None:
    graph = traced(name, granularity).blocks
    pricer, scores = Pricer(graph, kind), scores_of((50, len(graph.blocks)), pattern)
    found = [candidate_of_ratio(scores, graph, pricer, ratio, order) for ratio in RATIOS]
    for ratio, candidate in zip(RATIOS, found, strict=True):
        assert abs(candidate.ratio - ratio) <= TOLERANCE
        assert candidate.computed[0] == frozenset(graph.block_names) and candidate.knobs == {"order": order}
    assert [candidate.ratio for candidate in found] == sorted(candidate.ratio for candidate in found)


def test_the_ratio_is_that_of_the_schedule() -> None:
    graph = unet_like()
    found = candidate_of_ratio(scores_of((50, 10), "random"), graph, Pricer(graph, "output"), 0.6)
    schedule = schedule_from_sets(graph, contract_of(graph, 50), "output", found.computed)
    assert found.ratio == pytest.approx(pruned_ratio(schedule, graph))


@pytest.mark.parametrize("order", ["bisection", "greedy"])
def test_a_higher_ratio_computes_a_part_of_what_a_lower_one_does(order) -> None:
    graph = chain_like()
    pricer, scores = Pricer(graph, "residual"), scores_of((50, 7), "random")
    masks = [mask_of_ratio(scores, graph, pricer, ratio, order) for ratio in RATIOS]
    assert all((less <= more).all() for more, less in pairwise(masks))


def test_the_highest_scores_stay() -> None:
    graph = chain_like()
    scores = scores_of((50, 7), "random")
    mask = mask_of_ratio(scores, graph, Pricer(graph, "residual"), 0.5)
    assert mask[0].all() and scores[1:][mask[1:]].min() >= scores[1:][~mask[1:]].max()


def test_greedy_gives_up_the_last_blocks_of_a_band_first() -> None:
    """Scores of one band but for the fourth block, whose band is the highest: it stays, then blocks by their place."""
    graph = chain_like()
    scores = np.random.default_rng(0).uniform(0.51, 0.54, (50, 7))
    scores[:, 3], scores[:, -1] = 0.9, 0.95
    mask = mask_of_ratio(scores, graph, Pricer(graph, "residual"), 0.5, "greedy")
    shares = mask[1:].mean(axis=0)
    assert shares[3] == shares[-1] == 1.0
    assert [shares[i] >= shares[j] for i, j in ((0, 1), (1, 2), (2, 4), (4, 5))] == [True] * 4
    assert shares[0] == 1.0 and shares[5] == 0.0


@pytest.mark.parametrize(("graph", "left"), [(unet_like(), frozenset()), (chain_like(), frozenset({"prediction"}))])
def test_dead_blocks_are_left_out_of_the_sets(graph, left) -> None:
    """A U-Net's tail on reused features would give what is held, so it is left out too."""
    mask = np.zeros((3, len(graph.blocks)), dtype=bool)
    mask[0], mask[1, :-1], mask[2, -1], mask[2, 0] = True, True, True, True
    assert sets_of(mask, graph, Pricer(graph, "output"))[1:] == [frozenset(), left]


def test_few_steps_are_filled_from_below() -> None:
    """At 8 steps a whole one is 12.5 %: what still fits is taken instead."""
    graph = chain_like()
    pricer, scores = Pricer(graph, "residual"), scores_of((8, 7), "steps")
    for ratio in (0.4, 0.5, 0.55, 0.7):
        assert abs(candidate_of_ratio(scores, graph, pricer, ratio).ratio - ratio) <= 0.02


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(UsageError, match="order 'best' is unknown: choose bisection, greedy"):
        candidate_of_ratio(np.ones((3, 7)), chain_like(), Pricer(chain_like(), "output"), 0.5, "best")

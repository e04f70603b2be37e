"""Judges in turn: later ones are asked only where the first see a gain, and images keep their order."""

from __future__ import annotations

import numpy as np

from dipgo_deploy.search.evaluator import StagedEvaluator
from tests.search.fakes import FakeEvaluator
from tests.search.graphs import unet_like

GRAPH = unet_like()
FULL = frozenset(GRAPH.block_names)
GOOD, BAD, MIXED = [FULL, FULL, FULL], [FULL, frozenset(), frozenset()], [FULL, FULL, frozenset()]
FIRST = {3: 5.0, 2: 4.0, 1: 1.0}
SECOND = {3: 9.0, 2: 0.0, 1: 3.0}


def panel() -> StagedEvaluator:
    evaluators = [FakeEvaluator(GRAPH, 3, lambda sets, by=by: by[sum(map(bool, sets))]) for by in (FIRST, SECOND)]
    return StagedEvaluator(evaluators)  # type: ignore[arg-type]


def test_images_of_all_judges_in_turn_and_their_cost() -> None:
    found = panel()
    assert found.psnr_db(GOOD).tolist() == [5.0, 9.0] and found.graph is GRAPH
    assert found.search_cost == sum(evaluator.search_cost for evaluator in found.evaluators) == 4


def test_what_fails_on_the_first_images_costs_the_others_nothing() -> None:
    found, known = panel(), np.array([4.0, 0.0])
    before = found.evaluators[1].search_cost
    assert found.better(BAD, known, 0.0) is None and found.evaluators[1].search_cost == before


def test_better_is_the_mean_of_all_by_more_than_the_least_gain() -> None:
    found, known = panel(), np.array([1.0, 3.0])
    assert found.better(GOOD, known, 0.0).tolist() == [5.0, 9.0]
    assert found.better(MIXED, known, 0.0) is None  # 4 beats 1 on the first image, but 2 on both does not beat 2
    assert found.better(GOOD, known, 5.0) is None and found.better(GOOD, known, 4.9) is None
    assert found.better(GOOD, np.array([0.0, 8.0]), 2.9) is not None

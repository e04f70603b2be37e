"""Exchanges at a fixed ratio: the best score never falls, the ratio is never exceeded, a seed settles everything."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from dipgo_deploy.search.cost import GateCost, Pricer
from dipgo_deploy.search.dipgo.polish import Polished, PolishOptions, polish
from dipgo_deploy.search.dipgo.threshold import sets_of
from dipgo_deploy.search.evaluator import StagedEvaluator
from tests.search.fakes import FakeEvaluator, hidden_optimum
from tests.search.graphs import chain_like, unet_like

STEPS = 12
CASES = [(unet_like(), "output"), (chain_like(), "residual")]
each = pytest.mark.parametrize(("graph", "kind"), CASES, ids=["unet", "chain"])


def start_of(graph) -> np.ndarray:
    """The first four steps, all of them: a third."""
    mask = np.zeros((STEPS, len(graph.blocks)), dtype=bool)
    mask[:4] = True
    return mask


def run(
    graph, kind, seed: int = 0, rounds: int = 25, gradient=None, score=None
) -> tuple[FakeEvaluator, list[Polished]]:
    evaluator = FakeEvaluator(graph, STEPS, score or hidden_optimum(graph, STEPS, 4, seed=1)[1], kind)
    noise = np.random.default_rng(9)
    gradient = gradient or (lambda mask: noise.standard_normal(mask.shape))
    cost = GateCost(Pricer(graph, kind), graph, "marginal")
    found = polish(start_of(graph), 2 / 3, StagedEvaluator([evaluator]), cost, gradient, PolishOptions(seed=seed))
    return evaluator, list(islice(found, rounds))


@each
def test_the_best_score_never_falls_and_the_ratio_is_never_exceeded(graph, kind) -> None:
    evaluator, found = run(graph, kind)
    pricer = Pricer(graph, kind)
    assert (found[0].mask == start_of(graph)).all()
    scores, spent = [p.score_db for p in found], [p.search_cost for p in found]
    assert scores == sorted(scores) and scores[-1] > scores[0] and spent == sorted(spent)
    for polished in found:
        sets = sets_of(polished.mask, graph, pricer)
        assert pricer.ratio(sets) >= 2 / 3 - 1e-6 and polished.mask[0].all()
        assert evaluator.score(sets) == polished.score_db


@each
def test_it_is_settled_by_its_seed(graph, kind) -> None:
    first, again, other = (run(graph, kind, seed)[1] for seed in (0, 0, 1))
    assert all((a.mask == b.mask).all() and a.score_db == b.score_db for a, b in zip(first, again, strict=True))
    assert [p.search_cost for p in first] == [p.search_cost for p in again]
    assert [p.search_cost for p in first] != [p.search_cost for p in other]


@each
def test_a_gradient_that_knows_the_optimum_leads_to_it(graph, kind) -> None:
    optimum, score = hidden_optimum(graph, STEPS, 4, seed=1)
    wanted = np.array([[name in step for name in graph.block_names] for step in optimum])
    _, found = run(graph, kind, gradient=lambda mask: np.where(wanted, -1.0, 1.0), score=score)
    assert found[-1].score_db == 0.0 and (found[-1].mask == wanted).all()


def test_a_mask_without_neighbours_is_left_as_it_is() -> None:
    graph = chain_like(1)
    evaluator = FakeEvaluator(graph, 1, lambda computed: 1.0)
    cost = GateCost(Pricer(graph, "output"), graph, "marginal")
    found = list(
        polish(np.ones((1, 2), dtype=bool), 0.0, StagedEvaluator([evaluator]), cost, lambda mask: np.zeros(mask.shape))
    )
    assert [p.score_db for p in found] == [1.0]


def test_entries_that_live_for_nothing_are_dropped_first() -> None:
    graph = unet_like()
    mask = start_of(graph)
    mask[6, :-1] = True
    evaluator = FakeEvaluator(graph, STEPS, hidden_optimum(graph, STEPS, 4, seed=1)[1])
    cost = GateCost(Pricer(graph, "output"), graph, "marginal")
    first = next(polish(mask, 2 / 3, StagedEvaluator([evaluator]), cost, lambda given: np.zeros(given.shape)))
    assert (first.mask == start_of(graph)).all()

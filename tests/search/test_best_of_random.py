"""The best of a few random schedules is one of them, and no other."""

from __future__ import annotations

from dipgo_deploy.search import TOLERANCE, BestRandomOptions, SearchOptions, schedule_by_rule
from dipgo_deploy.search.random_schedules import best_of_random
from tests.search.fakes import FakeEvaluator
from tests.search.graphs import contract_of, unet_like
from tests.search.runs import run

GRAPH = unet_like()


def late(computed) -> float:
    return float(sum(step * len(row) for step, row in enumerate(computed)))


def test_the_winner_is_the_best_of_schedules_that_the_method_random_gives() -> None:
    evaluator = FakeEvaluator(GRAPH, 20, late)
    trials, found = run(
        best_of_random(evaluator, SearchOptions("best-random", 0.5, seed=3, settings=BestRandomOptions(4)))
    )
    contract = contract_of(GRAPH, 20)
    drawn = [
        schedule_by_rule(GRAPH, contract, SearchOptions("random", 0.5, seed=seed)).computed for seed in range(12, 16)
    ]
    assert set(evaluator.known) == set(drawn)
    assert tuple(found.computed) == max(drawn, key=late) == drawn[int(found.knobs["random_seed"]) - 12]
    assert abs(found.ratio - 0.5) <= TOLERANCE and found.knobs["candidates"] == "4"
    assert [(t.done, t.total) for t in trials] == [(i, 4) for i in range(1, 5)]
    best = [f"best {max(map(late, drawn[:i])):.2f} dB" for i in range(1, 5)]
    assert [t.text.split(",")[0] for t in trials] == best
    assert str(trials[-1]) == f"random schedules: 4 of 4, {best[-1]}, {evaluator.search_cost:.0f} trajectories"


def test_five_candidates_unless_told() -> None:
    trials, _ = run(best_of_random(FakeEvaluator(GRAPH, 10, late), SearchOptions("best-random", 0.5)))
    assert len(trials) == 5


def test_a_schedule_of_the_asked_ratio_goes_before_a_better_one_without() -> None:
    """Six steps, ratio 0.6: most seeds come near, the dearest score highest."""
    evaluator = FakeEvaluator(unet_like(1), 3, lambda computed: float(sum(map(len, computed))))
    _, found = run(best_of_random(evaluator, SearchOptions("best-random", 0.33, settings=BestRandomOptions(30))))
    gaps = [abs(evaluator.pricer.ratio(key) - 0.33) for key in evaluator.known]
    assert max(gaps) > TOLERANCE >= min(gaps) and abs(found.ratio - 0.33) <= TOLERANCE

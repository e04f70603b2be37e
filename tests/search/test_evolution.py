"""Evolution finds a hidden optimum, keeps to its budget and its ratio, and repeats itself."""

from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search import TOLERANCE, BestRandomOptions, EvolutionOptions, SearchOptions
from dipgo_deploy.search.evolution import evolutionary
from dipgo_deploy.search.random_schedules import best_of_random
from tests.search.fakes import FakeEvaluator, hidden_optimum
from tests.search.graphs import chain_like, unet_like
from tests.search.runs import run

GRAPH, STEPS, RATIO = unet_like(1), 10, 0.6
OPTIMUM, SCORE = hidden_optimum(GRAPH, STEPS, 4, seed=0)


def nothing_matters(computed) -> float:
    return 0.0


def options_of(ratio: float, kind, seed: int = 0, **knobs) -> SearchOptions:
    return SearchOptions("evolutionary", ratio, kind, seed, EvolutionOptions(**knobs))


def evolve(evaluator: FakeEvaluator, ratio: float = RATIO, **knobs):
    return run(evolutionary(evaluator, options_of(ratio, evaluator.kind, **knobs)))


@pytest.mark.parametrize("seed", range(3))
def test_evolution_finds_the_optimum_where_as_many_random_schedules_do_not(seed: int) -> None:
    evaluator, lucky = FakeEvaluator(GRAPH, STEPS, SCORE), FakeEvaluator(GRAPH, STEPS, SCORE)
    _, found = evolve(evaluator, seed=seed, trajectories=200)
    count = int(200 / (1 - RATIO))
    _, drawn = run(
        best_of_random(lucky, SearchOptions("best-random", RATIO, seed=seed, settings=BestRandomOptions(count)))
    )
    assert tuple(found.computed) == OPTIMUM and SCORE(found.computed) == 0.0
    assert SCORE(drawn.computed) < 0.0


def test_progress_tells_the_budget_and_the_best_only_gets_better() -> None:
    evaluator = FakeEvaluator(GRAPH, STEPS, SCORE)
    seen, found = evolve(evaluator, trajectories=40, population=8)
    assert all(each.total == 40 for each in seen) and seen[-1].done == evaluator.search_cost
    assert 40 <= evaluator.search_cost < 41 and all(each.done < 40 for each in seen[:-1])
    best = [float(each.text.split()[1]) for each in seen if each.text]
    assert best == sorted(best) and best[-1] == SCORE(found.computed)
    assert found.knobs["population"] == "8" and int(found.knobs["evaluated"]) == len(seen)


def test_what_is_returned_is_the_best_that_was_evaluated_at_the_ratio() -> None:
    evaluator = FakeEvaluator(GRAPH, STEPS, SCORE)
    _, found = evolve(evaluator, trajectories=30)
    near = [key for key in evaluator.known if abs(evaluator.pricer.ratio(key) - RATIO) <= TOLERANCE]
    assert SCORE(found.computed) == max(map(SCORE, near))
    assert found.ratio == evaluator.pricer.ratio(found.computed)


@pytest.mark.parametrize(
    ("graph", "kind"), [(unet_like(), "output"), (chain_like(), "output"), (chain_like(), "residual")]
)
@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_ratios_are_met_on_every_graph(graph, kind, ratio: float) -> None:
    evaluator = FakeEvaluator(graph, 20, lambda computed: float(sum(map(len, computed))), kind)
    _, found = evolve(evaluator, ratio, trajectories=15)
    assert abs(found.ratio - ratio) <= TOLERANCE


def test_a_ratio_out_of_reach_gives_the_nearest_schedule() -> None:
    evaluator = FakeEvaluator(GRAPH, 3, nothing_matters)
    _, found = evolve(evaluator, 0.9, population=4)
    assert found.ratio == pytest.approx(2 / 3) and not found.computed[1] and not found.computed[2]


def test_evolution_ends_where_nothing_new_is_left() -> None:
    evaluator = FakeEvaluator(GRAPH, 2, nothing_matters)
    _, found = evolve(evaluator, 0.5, trajectories=10_000)
    assert evaluator.search_cost < 100 and found.ratio == pytest.approx(0.5, abs=TOLERANCE)


def test_a_seed_settles_everything() -> None:
    runs = [evolve(FakeEvaluator(GRAPH, STEPS, SCORE), seed=seed, trajectories=30) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] and runs[0][0] != runs[2][0]


def test_a_budget_that_is_used_up_is_refused() -> None:
    evaluator = FakeEvaluator(GRAPH, STEPS, SCORE)
    evaluator.search_cost = 8.0
    with pytest.raises(UsageError, match="^trajectories 8 are used up: 8 were needed for full runs, give more$"):
        evolve(evaluator, trajectories=8)

"""Evolution finds a hidden optimum, keeps to its budget and its ratio, and repeats itself."""

from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search import TOLERANCE, SearchOptions
from dipgo_deploy.search.evolution import evolutionary
from dipgo_deploy.search.random_schedules import best_of_random
from tests.search.fakes import FakeJudge, hidden_optimum
from tests.search.graphs import chain_like, unet_like
from tests.search.runs import run

GRAPH, STEPS, RATIO = unet_like(1), 10, 0.6
OPTIMUM, SCORE = hidden_optimum(GRAPH, STEPS, 4, seed=0)


def nothing_matters(computed) -> float:
    return 0.0


def evolve(judge: FakeJudge, ratio: float = RATIO, **knobs):
    return run(evolutionary(judge, SearchOptions("evolutionary", ratio, judge.kind, **knobs)))


@pytest.mark.parametrize("seed", range(3))
def test_evolution_finds_the_optimum_where_as_many_random_schedules_do_not(seed: int) -> None:
    judge, lucky = FakeJudge(GRAPH, STEPS, SCORE), FakeJudge(GRAPH, STEPS, SCORE)
    _, found = evolve(judge, seed=seed, trajectories=200)
    count = int(200 / (1 - RATIO))
    _, drawn = run(best_of_random(lucky, SearchOptions("best-random", RATIO, seed=seed, candidates=count)))
    assert tuple(found.computed) == OPTIMUM and SCORE(found.computed) == 0.0
    assert SCORE(drawn.computed) < 0.0


def test_every_trial_tells_the_budget_and_the_best_only_gets_better() -> None:
    judge = FakeJudge(GRAPH, STEPS, SCORE)
    trials, found = evolve(judge, trajectories=40, population=8)
    assert all(t.total == 40 and t.done == t.spent for t in trials) and trials[-1].spent == judge.spent
    assert 40 <= judge.spent < 41 and all(t.spent < 40 for t in trials[:-1])
    best = [t.best_db for t in trials if t.best_db is not None]
    assert best == sorted(best) and best[-1] == SCORE(found.computed)
    assert found.knobs["population"] == "8" and int(found.knobs["judged"]) == len(trials)


def test_what_is_returned_is_the_best_that_was_judged_at_the_ratio() -> None:
    judge = FakeJudge(GRAPH, STEPS, SCORE)
    _, found = evolve(judge, trajectories=30)
    near = [key for key in judge.known if abs(judge.pricer.ratio(key) - RATIO) <= TOLERANCE]
    assert SCORE(found.computed) == max(map(SCORE, near))
    assert found.ratio == judge.pricer.ratio(found.computed)


@pytest.mark.parametrize(
    ("graph", "kind"), [(unet_like(), "output"), (chain_like(), "output"), (chain_like(), "residual")]
)
@pytest.mark.parametrize("ratio", [0.3, 0.8])
def test_ratios_are_met_on_every_graph(graph, kind, ratio: float) -> None:
    judge = FakeJudge(graph, 20, lambda computed: float(sum(map(len, computed))), kind)
    _, found = evolve(judge, ratio, trajectories=15)
    assert abs(found.ratio - ratio) <= TOLERANCE


def test_a_ratio_out_of_reach_gives_the_nearest_schedule() -> None:
    judge = FakeJudge(GRAPH, 3, nothing_matters)
    _, found = evolve(judge, 0.9, population=4)
    assert found.ratio == pytest.approx(2 / 3) and not found.computed[1] and not found.computed[2]


def test_evolution_ends_where_nothing_new_is_left() -> None:
    judge = FakeJudge(GRAPH, 2, nothing_matters)
    _, found = evolve(judge, 0.5, trajectories=10_000)
    assert judge.spent < 100 and found.ratio == pytest.approx(0.5, abs=TOLERANCE)


def test_a_seed_settles_everything() -> None:
    runs = [evolve(FakeJudge(GRAPH, STEPS, SCORE), seed=seed, trajectories=30) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] and runs[0][0] != runs[2][0]


def test_a_budget_that_is_spent_already_is_refused() -> None:
    judge = FakeJudge(GRAPH, STEPS, SCORE)
    judge.spent = 8.0
    with pytest.raises(UsageError, match="^trajectories 8 are spent: 8 went before, give more$"):
        evolve(judge, trajectories=8)

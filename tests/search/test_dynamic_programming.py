"""Cheapest paths on the digits U-Net, what they are filled with, and the samplers they suit."""

from __future__ import annotations

import pytest

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models import make_contract
from dipgo_deploy.search import TOLERANCE, SearchOptions
from dipgo_deploy.search.calibration import calibrate
from dipgo_deploy.search.dynamic_programming import dynamic_programming, finalists
from dipgo_deploy.search.evaluator import Evaluator
from tests.search.fakes import FakeEvaluator
from tests.search.graphs import chain_like, unet_like
from tests.search.runs import run

PATHS = [tuple(range(count)) for count in range(1, 21)]


def nothing_matters(computed) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("graph", "kind"), [(unet_like(), "output"), (chain_like(), "output"), (chain_like(), "residual")]
)
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_every_finalist_meets_the_ratio_on_a_path_with_one_set_in_between(graph, kind, ratio: float) -> None:
    evaluator = FakeEvaluator(graph, 20, nothing_matters, kind)
    drawn = finalists(evaluator, ratio, PATHS)
    assert {"nothing"} <= {one.knobs["between"] for one in drawn}
    for one in drawn:
        keys = int(one.knobs["key_steps"])
        assert set(one.computed[:keys]) == {frozenset(graph.block_names)} and len(set(one.computed[keys:])) == 1
        assert abs(one.ratio - ratio) <= TOLERANCE and one.ratio == evaluator.pricer.ratio(one.computed)


def test_what_lies_between_is_nothing_the_tail_or_a_shallow_branch() -> None:
    graph = unet_like()
    between = {
        one.knobs["between"]: one.computed[-1]
        for one in finalists(
            FakeEvaluator(graph, 100, nothing_matters), 0.3, [tuple(range(count)) for count in range(1, 101)]
        )
    }
    assert between == {
        "nothing": frozenset(),
        "prediction": {PREDICTION},
        "1 at each end": {"down_blocks.0", "up_blocks.3", PREDICTION},
    }


def test_three_finalists_of_a_kind_at_most_and_the_nearest_where_none_meets_the_ratio() -> None:
    evaluator = FakeEvaluator(chain_like(), 200, nothing_matters)
    drawn = finalists(evaluator, 0.5, [tuple(range(count)) for count in range(1, 201)])
    assert [one.knobs["key_steps"] for one in drawn if one.knobs["between"] == "nothing"] == ["100", "99", "101"]
    (only,) = finalists(FakeEvaluator(chain_like(), 3, nothing_matters), 0.9, PATHS[:3])
    assert (only.knobs["key_steps"], only.knobs["between"]) == ("1", "nothing")


def test_six_steps_of_digits(digits_unet, traced) -> None:
    graph = traced("digits-unet", "stage").blocks
    contract = make_contract(digits_unet, steps=6)
    calibration = calibrate(digits_unet, graph, contract, range(2))
    evaluator, options = Evaluator(calibration, graph, "output"), SearchOptions("dpcache", 0.5, seed=1)
    trials, found = run(dynamic_programming(evaluator, options))
    assert abs(found.ratio - 0.5) <= TOLERANCE and found.knobs == {"between": "nothing", "key_steps": "3"}
    assert [trial.stage for trial in trials[:7]] == ["calibration"] * 6 + ["cheapest paths"]
    assert trials[5].text == f"{2 + 2 * (1 + 1 + 4)} trajectories"
    score = evaluator.score(found.computed)
    assert trials[-1].text == f"best {score:.2f} dB, {evaluator.search_cost:.0f} trajectories"
    uniform = [frozenset() if step % 2 else frozenset(graph.block_names) for step in range(6)]
    assert evaluator.score(found.computed) >= evaluator.score(uniform)
    again = run(dynamic_programming(Evaluator(calibration, graph, "output"), options))
    assert again == (trials, found)


def test_samplers_whose_steps_are_not_linear_are_refused(digits_unet, traced) -> None:
    graph = traced("digits-unet", "stage").blocks
    contract = make_contract(digits_unet, sampler="euler-a", steps=6)
    evaluator = Evaluator(calibrate(digits_unet, graph, contract, range(1)), graph, "output")
    message = (
        "^dpcache needs a sampler whose steps are linear, but EulerAncestralDiscreteScheduler draws noise: "
        "choose another sampler, or method evolutionary$"
    )
    with pytest.raises(UsageError, match=message):
        run(dynamic_programming(evaluator, SearchOptions("dpcache", 0.5)))

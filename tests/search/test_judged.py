"""Every method that runs the model, on the digits U-Net: a valid schedule whose origin says how it came about."""

from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.core.schedule import Schedule, check_schedule
from dipgo_deploy.models import make_contract
from dipgo_deploy.search import TOLERANCE, SearchOptions
from dipgo_deploy.search.calibration import Calibration, calibrate
from dipgo_deploy.search.judged import search_with_model
from dipgo_deploy.search.trial import Trial
from tests.search.fakes import FakeJudge
from tests.search.graphs import chain_like, contract_of, unet_like

KNOBS = {"best-random": {"candidates": 3}, "evolutionary": {"trajectories": 12, "population": 6}, "dpcache": {}}


@pytest.fixture(scope="module")
def graph(traced):
    return traced("digits-unet", "stage").blocks


@pytest.fixture(scope="module")
def calibration(digits_unet, graph) -> Calibration:
    return calibrate(digits_unet, graph, make_contract(digits_unet, steps=6), range(2))


@pytest.mark.parametrize("method", KNOBS)
def test_six_steps_of_digits(graph, calibration: Calibration, method: str) -> None:
    judge, options = Judge(calibration, graph, "output"), SearchOptions(method, 0.5, seed=2, **KNOBS[method])
    *trials, schedule = search_with_model(judge, options)
    assert trials and all(isinstance(trial, Trial) for trial in trials) and isinstance(schedule, Schedule)
    check_schedule(schedule, graph.block_names)
    reached, origin = pruned_ratio(schedule, graph), schedule.origin
    assert abs(reached - 0.5) <= TOLERANCE and origin["reached"] == f"{reached:.4f}"
    assert (origin["method"], origin["ratio"], origin["seed"]) == (method, "0.5", "2")
    assert float(origin["score_db"]) == pytest.approx(judge.score(schedule.computed), abs=1e-3)
    assert float(origin["spent"]) == pytest.approx(judge.spent, abs=0.1) and float(origin["seconds"]) >= 0
    assert all(origin[name] == str(value) for name, value in KNOBS[method].items())
    *again, repeated = search_with_model(Judge(calibration, graph, "output"), options)
    assert repeated == schedule and again == trials


def nothing_matters(computed) -> float:
    return 0.0


def drain(judge: FakeJudge, *options, **knobs) -> None:
    list(search_with_model(judge, SearchOptions(*options, **knobs)))  # type: ignore[arg-type]


def test_what_does_not_fit_is_refused() -> None:
    judge = FakeJudge(unet_like(), 4, nothing_matters)
    with pytest.raises(
        UsageError, match="^method fora does not run the model: choose one of best-random, evolutionary"
    ):
        drain(judge, "fora", 0.5)
    with pytest.raises(
        UsageError, match="^the judge scores kind output, kind residual was asked for: make them alike$"
    ):
        drain(judge, "best-random", 0.5, "residual")
    with pytest.raises(InputError, match="no residual to reuse: choose kind output"):
        drain(FakeJudge(unet_like(), 4, nothing_matters, "residual"), "best-random", 0.5, "residual")
    judge.calibration.contract = contract_of(chain_like(), 4)
    with pytest.raises(InputError, match="traced from model_class UNet2DConditionModel, the contract names DiT"):
        drain(judge, "best-random", 0.5)

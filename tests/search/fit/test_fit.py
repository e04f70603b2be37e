"""The fit as a method: better than plain samplers, never worse, and a schedule that every command accepts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.models import make_contract
from dipgo_deploy.models.full_run import full_run_of
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.schedulers import scheduler_from_spec
from dipgo_deploy.search import SearchOptions, method_options
from dipgo_deploy.search.fit import search as module
from dipgo_deploy.search.options import NOTE
from dipgo_deploy.search.run import search
from tests.search.runs import run

SMALL = {"calls": 3, "trajectories": 2, "sweeps": 1}


def options(**settings) -> SearchOptions:
    return SearchOptions("fit", settings=method_options("fit", **{**SMALL, "teacher": "full", **settings}))


@pytest.fixture(scope="module")
def blocks(traced):
    return traced("digits-unet", "stage").blocks


@pytest.fixture(scope="module")
def contract(digits_unet):
    return make_contract(digits_unet, steps=12, guidance="none")


def test_a_fit_beats_plain_samplers_and_is_an_ordinary_schedule(digits_unet, blocks, contract) -> None:
    seen, schedule = run(search(digits_unet, contract, options(), blocks=blocks))
    origin, sampler = schedule.origin, schedule.contract.sampler
    assert float(origin["score_db"]) > float(origin["best_plain_db"]) + 2.0
    assert schedule.steps == 3 and all(map(all, schedule.compute)) and sampler.class_name == "LearnedScheduler"
    assert isinstance(read_sampler(sampler), LinearSampler) and full_run_of(sampler) == contract.sampler
    made_for = scheduler_from_spec(sampler).config.made_for
    assert made_for["model_digest"] == digits_unet.digest and made_for["guidance_range"] == [1.0, 1.0]
    assert {progress.stage for progress in seen} == {"teacher", "time grids", "times", "plain samplers"}
    assert origin["full_run"] == "DDIMScheduler with 12 calls" and origin["reached"] == "0.7500"
    again = run(search(digits_unet, contract, options(), blocks=blocks))[1]
    assert again == schedule


def test_the_floor_is_the_best_plain_sampler(digits_unet, blocks, contract, monkeypatch) -> None:
    """A fit that is worse on held-out images gives way, and says so."""
    best_fit = module.best_fit

    def worse(*arguments):
        trial = yield from best_fit(*arguments)
        return replace(trial, score=5.0)

    monkeypatch.setattr(module, "best_fit", worse)
    seen, schedule = run(search(digits_unet, contract, options(), blocks=blocks))
    notes = [progress.text for progress in seen if progress.stage == NOTE]
    assert len(notes) == 1 and "is better than the fit on held-out images" in notes[0]
    assert schedule.contract.sampler.class_name != "LearnedScheduler" and schedule.steps == 3
    assert schedule.origin["score_db"] == schedule.origin["best_plain_db"] and schedule.origin["sampler"] in notes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calls": 0}, "calls must be at least 1"),
        ({"trajectories": 0}, "trajectories must be at least 1"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"teacher": "best"}, "choose full or converged"),
    ],
)
def test_wrong_options_are_refused(settings, message) -> None:
    with pytest.raises(UsageError, match=message):
        options(**settings)


def test_a_guidance_scale_needs_guidance(digits_unet, blocks, contract) -> None:
    scaled = replace(options(), guidance_scale=3.0)
    with pytest.raises(UsageError, match="guidance_scale is 3, but the contract has no guidance"):
        run(search(digits_unet, contract, scaled, blocks=blocks))


def test_the_memory_is_the_whole_history_up_to_ten_calls() -> None:
    assert [method_options("fit", calls=calls).history for calls in (5, 10, 11)] == [5, 10, 3]
    assert method_options("fit", calls=5, memory=2).history == 2

"""The entry point of all methods: a valid schedule whose origin says how it was made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.core.progress import Progress, finish
from dipgo_deploy.core.schedule import check_schedule
from dipgo_deploy.models import make_contract
from dipgo_deploy.search import (
    METHODS,
    RULES,
    TOLERANCE,
    BestRandomOptions,
    DipgoOptions,
    EvolutionOptions,
    RandomOptions,
    SearchOptions,
    schedule_by_rule,
    search,
)
from dipgo_deploy.search import run as module
from dipgo_deploy.search.dipgo.pruner_file import read_scores
from dipgo_deploy.search.evaluator import Evaluator
from dipgo_deploy.search.run import evaluated
from tests.search.gradient import SMALL, contract_for
from tests.search.graphs import chain_like, contract_of, unet_like
from tests.search.runs import run

SETTINGS = {
    "best-random": BestRandomOptions(3),
    "evolutionary": EvolutionOptions(6, 12),
    "dpcache": None,
    "dipgo": DipgoOptions(**{**SMALL, "iterations": 1, "polish": 6}),
}
RECORDED = {"best-random": {"candidates": "3"}, "evolutionary": {"population": "6", "trajectories": "12"}}


@pytest.fixture(scope="module")
def graph(traced):
    return traced("digits-unet", "stage").blocks


def test_every_method_that_runs_the_model_is_tried_here() -> None:
    # Methods that are given a number of calls, and not a ratio, are tried in tests/search/fit.
    given_calls = {name for name, method in METHODS.items() if method.options().decides_ratio}
    assert set(SETTINGS) == set(METHODS) - set(RULES) - given_calls


@pytest.mark.parametrize("method", SETTINGS)
def test_six_steps_of_digits(digits_unet, graph, method: str) -> None:
    options = SearchOptions(method, 0.5, seed=2, settings=SETTINGS[method], images=2)
    seen, schedule = run(search(digits_unet, contract_for(digits_unet), options, blocks=graph))
    assert len(seen) > 1 and all(isinstance(each, Progress) for each in seen)
    check_schedule(schedule, graph.block_names)
    reached, origin = pruned_ratio(schedule, graph), schedule.origin
    assert abs(reached - 0.5) <= TOLERANCE and origin["reached"] == f"{reached:.4f}"
    assert (origin["method"], origin["ratio"], origin["seed"]) == (method, "0.5", "2")
    assert float(origin["score_db"]) > 0 and float(origin["search_cost"]) > 2 and float(origin["seconds"]) >= 0
    assert origin.items() >= RECORDED.get(method, {}).items()
    again, repeated = run(search(digits_unet, contract_for(digits_unet), options, blocks=graph))
    assert repeated == schedule and again == seen


def test_the_score_is_that_of_the_evaluator(digits_unet, graph) -> None:
    calibration = module.calibrate(digits_unet, graph, contract_for(digits_unet), range(2))
    evaluator = Evaluator(calibration, graph, "output")
    _, candidate = run(evaluated(evaluator, SearchOptions("best-random", 0.5, settings=BestRandomOptions(2))))
    assert candidate.knobs["score_db"] == f"{evaluator.score(candidate.computed):.3f}"
    assert candidate.knobs["search_cost"] == f"{evaluator.search_cost:.1f}"


def test_a_rule_traces_the_model_unless_blocks_are_passed(digits_unet, graph, monkeypatch) -> None:
    contract, options = contract_for(digits_unet), SearchOptions("random", 0.5, seed=3)
    seen, schedule = run(search(digits_unet, contract, options))
    assert [each.stage for each in seen] == ["trace"] and schedule == schedule_by_rule(graph, contract, options)
    monkeypatch.setattr(module, "trace", lambda *_, **__: pytest.fail("traced"))
    assert run(search(digits_unet, contract, options, blocks=graph)) == ([], schedule)


def test_granularity_and_patterns_are_those_of_the_trace(digits_unet, monkeypatch, graph) -> None:
    asked = []

    def trace(model, **options):
        asked.append(options)
        return type("Trace", (), {"blocks": graph})

    monkeypatch.setattr(module, "trace", trace)
    for fields in ({"granularity": "layer"}, {"patterns": ("mid_block",)}):
        finish(search(digits_unet, contract_for(digits_unet), SearchOptions("uniform", 0.5, **fields)))
    assert asked == [{"granularity": "layer", "patterns": None}, {"granularity": "stage", "patterns": ("mid_block",)}]


def test_max_graphs_limits_the_schedule(digits_unet, graph) -> None:
    options = SearchOptions("random", 0.5, max_graphs=2)
    schedule = finish(search(digits_unet, contract_for(digits_unet), options, blocks=graph))
    assert len({step for step in schedule.computed if step}) <= 3 and schedule.origin["max_graphs"] == "2"


def test_a_trained_pruner_is_cut_at_any_ratio(digits_unet, graph, tmp_path) -> None:
    contract, file = contract_for(digits_unet), tmp_path / "a.pruner"
    training = DipgoOptions(**{**SMALL, "iterations": 2, "pruner": file})
    first = finish(
        search(
            digits_unet, contract, SearchOptions("dipgo", 0.5, seed=4, settings=training, classes=(7,)), blocks=graph
        )
    )
    trained = DipgoOptions(from_pruner=file)
    seen, cut = run(search(digits_unet, contract, SearchOptions("dipgo", 0.5, settings=trained), blocks=graph))
    assert cut == first and cut.origin["seed"] == "4" and "score_db" not in cut.origin
    assert [each.text for each in seen] == [f"continuing {file} after 2 of 2 iterations"]
    assert read_scores(file).shape == (6, 8)
    polished = replace(trained, polish=4, order="greedy")
    options = SearchOptions("dipgo", 0.3, settings=polished, images=2)
    other = finish(search(digits_unet, contract, options, blocks=graph))
    assert other.origin["order"] == "greedy" and other.origin["polished"] == "yes"


def test_an_unfinished_pruner_is_not_cut(digits_unet) -> None:
    from dipgo_deploy.search.dipgo.pruner_file import shipped_pruner

    trained = DipgoOptions(from_pruner=shipped_pruner("digits-unet"))
    with pytest.raises(InputError, match="stopped after 5 of 10 iterations: finish it with pruner"):
        next(search(digits_unet, contract_for(digits_unet), SearchOptions("dipgo", settings=trained)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 1}, "seed belongs to training, but from_pruner names a trained pruner: leave one out"),
        ({"classes": (1,)}, "classes belongs to training"),
        ({"prompts": ("a cat",)}, "prompts belongs to training"),
        ({"guidance_scale": 0.0}, "guidance_scale belongs to training"),
        ({"images": 4}, "images evaluate exchanges, but from_pruner makes none without polish: give polish"),
    ],
)
def test_what_a_trained_pruner_brings_cannot_be_given(fields, message, tmp_path) -> None:
    with pytest.raises(UsageError, match=message):
        SearchOptions("dipgo", settings=DipgoOptions(from_pruner=tmp_path / "p"), **fields)


def test_a_model_without_weights_is_not_run(digits_unet) -> None:
    class Shapes:
        has_weights = False

    for method in SETTINGS:
        with pytest.raises(UsageError, match=f"{method} runs the model, which was loaded without weights: load the"):
            next(search(Shapes(), contract_for(digits_unet), SearchOptions(method)))
    uniform = search(Shapes(), contract_of(unet_like(), 6), SearchOptions("uniform", 0.5), blocks=unet_like())
    assert finish(uniform).steps == 6


def test_parts_that_do_not_fit_are_refused(digits_unet) -> None:
    for graph, contract, kind, message in (
        (unet_like(), contract_of(unet_like(), 4), "residual", "no residual to reuse: choose kind output"),
        (
            unet_like(),
            contract_of(chain_like(), 4),
            "output",
            "from model_class UNet2DConditionModel, but the contract",
        ),
    ):
        for method in METHODS:
            with pytest.raises(InputError, match=message):
                finish(search(digits_unet, contract, SearchOptions(method, 0.5, kind), blocks=graph))


def test_settings_of_another_method_are_refused() -> None:
    with pytest.raises(UsageError, match="method fora takes ForaOptions, got RandomOptions: change method or settings"):
        SearchOptions("fora", settings=RandomOptions())
    with pytest.raises(TypeError, match="random has RandomOptions, not EvolutionOptions"):
        SearchOptions("random").settings_as(EvolutionOptions)


def test_guidance_of_the_search_is_that_of_its_runs(digits_unet, graph, monkeypatch) -> None:
    asked, calibrate = [], module.calibrate

    def watched(*arguments, **options):
        asked.append((len(arguments[3]), arguments[3][0], options))
        return calibrate(*arguments, **options)

    monkeypatch.setattr(module, "calibrate", watched)
    contract = make_contract(digits_unet, steps=2, guidance="concat")
    options = SearchOptions("dpcache", 0.5, images=3, classes=(1, 2), guidance_scale=5.0)
    finish(search(digits_unet, contract, options, blocks=graph))
    assert asked == [(3, 10_000_000, {"classes": (1, 2), "guidance_scale": 5.0})]

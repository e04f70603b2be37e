"""The gradient search as a whole. Above all: interrupted anywhere and run again, it gives the same schedule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search import dipgo as module
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.dipgo.polish import Polished
from dipgo_deploy.search.dipgo.search import GradientSearch
from dipgo_deploy.search.dipgo.training import Iteration
from dipgo_deploy.search.options import TOLERANCE
from tests.search.gradient import SMALL, contract_for

RATIO = 0.5
UNET = ("digits-unet", "stage", "output", {})
DIT = ("digits-dit", "branch", "residual", {"budget": "penalty", "cost": "cascade", "loss": "ssim", "unit": "ms"})


@pytest.fixture
def search_of(reference_model, traced):
    def make(case, file: Path | None = None, **fields) -> GradientSearch:
        name, granularity, kind, own = case
        model = reference_model(name)
        options = DipgoOptions(**{**SMALL, "polish": 24, **own, **fields})
        return GradientSearch(model, traced(name, granularity).blocks, contract_for(model), kind, options, file)

    return make


def finish(search: GradientSearch) -> Schedule:
    *_, schedule = search.search(RATIO)
    assert isinstance(schedule, Schedule)
    return schedule


@pytest.mark.parametrize(("every", "polish"), [(1, 12), (3, 0)])
def test_interrupted_anywhere_it_gives_the_same_schedule(search_of, tmp_path, monkeypatch, every, polish) -> None:
    """After every event of the training and of the polish; a file is written after every iteration, or every third."""
    monkeypatch.setattr(module, "_SAVE_EVERY", every)
    whole = search_of(UNET, polish=polish)
    events = list(whole.search(RATIO))
    kinds = [type(event) for event in events]
    assert kinds.count(Iteration) == 4 and kinds.count(Polished) >= 2 * (polish > 0) and kinds[-1] is Schedule
    for count in range(1, len(events)):
        file = tmp_path / f"{count}.pruner"
        interrupted = search_of(UNET, file, polish=polish).search(RATIO)
        for _ in range(count):
            next(interrupted)
        interrupted.close()
        again = search_of(UNET, file, polish=polish)
        assert again.training.done == (4 if count >= 4 else count - count % every)
        assert finish(again) == events[-1]
        assert np.array_equal(again.training.scores(), whole.training.scores())


def test_interrupted_twice_inside_an_iteration(search_of, tmp_path, monkeypatch) -> None:
    """Wherever the program dies, what was not written is done again; measured milliseconds are not measured again."""
    monkeypatch.setattr(module, "_SAVE_EVERY", 1)
    uninterrupted, twice = (tmp_path / name for name in ("a.pruner", "b.pruner"))
    first = search_of(DIT, uninterrupted)
    first.training.cost  # noqa: B018 - measures
    module.save_training(uninterrupted, first.training)
    twice.write_bytes(uninterrupted.read_bytes())
    whole = finish(search_of(DIT, uninterrupted))
    for after in (1, 2):
        search = search_of(DIT, twice)
        monkeypatch.setattr(search.training.objective, "gradient", dying(search.training.objective.gradient, after))
        with pytest.raises(KeyboardInterrupt):
            finish(search)
    last = search_of(DIT, twice)
    assert last.training.done == 3 and finish(last) == whole


def dying(gradient, after: int):
    calls: Iterator[int] = iter(range(after))

    def dies(*given):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return gradient(*given)

    return dies


def test_a_schedule_says_how_it_was_made(search_of) -> None:
    search = search_of(UNET)
    schedule = finish(search)
    origin = schedule.origin
    assert origin["method"] == "dipgo" and origin["ratio"] == "0.5" and origin["iterations"] == "4"
    assert (origin["budget"], origin["loss"], origin["order"]) == ("projection", "psnr", "bisection")
    assert origin["polished"] == "yes"
    assert float(origin["reached"]) == pytest.approx(pruned_ratio(schedule, search.training.graph), abs=1e-4)
    assert float(origin["reached"]) >= RATIO - 1e-4 and float(origin["spent"]) >= 24 and float(origin["score_db"]) > 0
    assert float(origin["seconds"]) > 0


def test_without_polish_it_is_the_candidate_of_the_scores(search_of) -> None:
    search = search_of(UNET, polish=0)
    schedule = finish(search)
    assert list(schedule.computed) == list(search.candidate(RATIO).computed) and "score_db" not in schedule.origin


def test_polish_is_no_worse_than_the_candidate_and_even_steps(search_of) -> None:
    search = search_of(UNET, iterations=1)
    list(search.train())
    found = list(search.polish(RATIO))
    assert [p.score_db for p in found] == sorted(p.score_db for p in found)
    assert found[-1].spent >= 24 > (found[-2].spent if len(found) > 1 else 0)
    assert [p.spent for p in found] == [p.spent for p in search.polish(RATIO)]


def test_even_steps_that_prune_too_little_are_no_start(search_of) -> None:
    """Of six even steps three prune 0.5 and two 0.667: both are far from 0.58."""
    search = search_of(UNET, iterations=1, polish=1)
    *_, schedule = search.search(0.58)
    assert pruned_ratio(schedule, search.training.graph) >= 0.58 - TOLERANCE


def test_compute_that_exchanges_leave_over_is_spent(search_of, monkeypatch) -> None:
    search = search_of(UNET)
    graph, steps = search.training.graph, search.training.contract.sampler.calls
    mask = np.zeros((steps, len(graph.blocks)), dtype=bool)
    mask[[0, steps // 2]] = True
    monkeypatch.setattr(GradientSearch, "polish", lambda self, ratio, order: iter([Polished(mask, 30.0, 1.0)]))
    schedule = finish(search)
    assert abs(pruned_ratio(schedule, graph) - RATIO) <= TOLERANCE < 1 - 2 / steps - RATIO
    assert all(schedule.computed[step] == set(graph.block_names) for step in (0, steps // 2))


def test_one_pruner_serves_any_ratio_from_its_file_alone(search_of, tmp_path) -> None:
    file = tmp_path / "search.pruner"
    trained = search_of(UNET, file)
    list(trained.train())
    read = search_of(UNET, file, polish=0)
    assert [i for i in read.train()] == []
    for order in ("bisection", "greedy"):
        assert read.candidate(0.6, order).computed == trained.candidate(0.6, order).computed


def test_refusals(search_of, reference_model, traced, tmp_path) -> None:
    search = search_of(UNET)
    for ratio in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match=r"ratio .* is not in \[0, 1\): give the share of MACs to prune"):
            search.candidate(ratio)
        with pytest.raises(UsageError, match=r"is not in \[0, 1\)"):
            next(search.search(ratio))
    with pytest.raises(UsageError, match="order 'best' is unknown: choose bisection, greedy"):
        next(search.search(RATIO, "best"))
    assert search.training.done == 0
    graph, contract = traced("digits-unet", "stage").blocks, contract_for(reference_model("digits-dit"))
    with pytest.raises(InputError, match="traced from model_class UNet2DConditionModel, the contract names DiT"):
        GradientSearch(reference_model("digits-dit"), graph, contract, "output", DipgoOptions())
    file = tmp_path / "search.pruner"
    file.write_bytes(b"no pruner")
    with pytest.raises(InputError, match="is damaged"):
        search_of(UNET, file)

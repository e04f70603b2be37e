"""The gradient search as a whole. Above all: interrupted anywhere and run again, it gives the same schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.core.progress import finish
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.dipgo import search as module
from dipgo_deploy.search.dipgo.polish import Polished
from dipgo_deploy.search.dipgo.search import GradientSearch
from dipgo_deploy.search.options import NOTE, TOLERANCE
from dipgo_deploy.search.problem import schedule_of
from tests.search.gradient import contract_for, problem_of
from tests.search.runs import run

RATIO = 0.5
UNET = ("digits-unet", "stage", "output", {})
DIT = ("digits-dit", "branch", "residual", {"budget": "penalty", "cost": "cascade", "loss": "ssim"})


@pytest.fixture
def search_of(reference_model, traced):
    def make(case, file: Path | None = None, **fields) -> GradientSearch:
        name, granularity, kind, own = case
        graph = traced(name, granularity).blocks
        options = {"polish": 24, "ratio": RATIO, "pruner": file, **own, **fields}
        return GradientSearch(problem_of(reference_model(name), graph, kind, **options))

    return make


def schedule_from(search: GradientSearch) -> Schedule:
    problem = search.problem
    return schedule_of(finish(search.run()), problem.graph, problem.contract, problem.options)


def check_interruptions(search_of, folder: Path, every: int, polish: int, after) -> None:
    """Interrupt the search after some events of its training and polish, and run it again."""
    whole = search_of(UNET, polish=polish)
    seen, candidate = run(whole.run())
    stages = [each.stage for each in seen]
    assert stages.count("training") == 4 and stages.count("polish") >= 2 * (polish > 0)
    assert stages[0] == NOTE and "a gradient step holds" in seen[0].text
    for count in after(len(seen)):
        file = folder / f"{count}.pruner"
        interrupted = search_of(UNET, file, polish=polish).run()
        for _ in range(count):
            next(interrupted)
        interrupted.close()
        again = search_of(UNET, file, polish=polish)
        done = count - 1  # the first event is the note
        assert again.training.done == (4 if done >= 4 else done - done % every)
        assert finish(again.run()).computed == candidate.computed
        assert np.array_equal(again.training.scores(), whole.training.scores())


def test_interrupted_it_gives_the_same_schedule(search_of, tmp_path, monkeypatch) -> None:
    """Before the first iteration is written, between two writes, and in the middle of the polish."""
    monkeypatch.setattr(module, "_SAVE_EVERY", 2)
    check_interruptions(search_of, tmp_path, every=2, polish=12, after=lambda events: (2, 4, events - 1))


@pytest.mark.slow
@pytest.mark.parametrize(("every", "polish"), [(1, 12), (3, 0)])
def test_interrupted_anywhere_it_gives_the_same_schedule(search_of, tmp_path, monkeypatch, every, polish) -> None:
    """After every event. A file is written after every iteration, or after every third."""
    monkeypatch.setattr(module, "_SAVE_EVERY", every)
    check_interruptions(search_of, tmp_path, every, polish, after=lambda events: range(1, events + 1))


def test_interrupted_twice_inside_an_iteration(search_of, tmp_path, monkeypatch) -> None:
    """Wherever the program dies, work that was not written is done again."""
    monkeypatch.setattr(module, "_SAVE_EVERY", 1)
    twice = tmp_path / "twice.pruner"
    whole = schedule_from(search_of(DIT, polish=0))
    for after in (1, 2):
        search = search_of(DIT, twice, polish=0)
        monkeypatch.setattr(search.training.objective, "gradient", dying(search.training.objective.gradient, after))
        with pytest.raises(KeyboardInterrupt):
            finish(search.run())
    last = search_of(DIT, twice, polish=0)
    assert last.training.done == 3 and schedule_from(last) == whole


def dying(gradient, after: int):
    calls: Iterator[int] = iter(range(after))

    def dies(*given):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return gradient(*given)

    return dies


def test_a_schedule_says_how_it_was_made(search_of) -> None:
    search = search_of(UNET)
    schedule = schedule_from(search)
    origin = schedule.origin
    assert origin["method"] == "dipgo" and origin["ratio"] == "0.5" and origin["iterations"] == "4"
    assert (origin["budget"], origin["loss"], origin["order"]) == ("projection", "psnr", "bisection")
    assert origin["polished"] == "yes"
    assert float(origin["reached"]) == pytest.approx(pruned_ratio(schedule, search.training.graph), abs=1e-4)
    assert (
        float(origin["reached"]) >= RATIO - 1e-4
        and float(origin["search_cost"]) >= 24
        and float(origin["score_db"]) > 0
    )
    assert float(origin["seconds"]) > 0


def test_without_polish_it_is_the_candidate_of_the_scores(search_of) -> None:
    search = search_of(UNET, polish=0)
    schedule = schedule_from(search)
    assert list(schedule.computed) == list(search.candidate(RATIO).computed) and "score_db" not in schedule.origin


def test_polish_is_no_worse_than_the_candidate_and_even_steps(search_of) -> None:
    search = search_of(UNET, iterations=1)
    finish(search.train())
    seen, polished = run(search.polish())
    scores, costs = [float(each.text.split()[0]) for each in seen], [each.done for each in seen]
    assert scores == sorted(scores) and f"{polished.score_db:.2f}" == f"{scores[-1]:.2f}"
    assert costs[-1] == polished.search_cost >= 24 > (costs[-2] if len(costs) > 1 else 0)
    assert seen == run(search.polish())[0]


def test_even_steps_that_prune_too_little_are_no_start(search_of) -> None:
    """Of six even steps three prune 0.5 and two 0.667: both are far from 0.58."""
    search = search_of(UNET, iterations=1, polish=1, ratio=0.58)
    schedule = schedule_from(search)
    assert pruned_ratio(schedule, search.training.graph) >= 0.58 - TOLERANCE


def test_compute_that_exchanges_leave_over_is_spent(search_of, monkeypatch) -> None:
    search = search_of(UNET)
    graph, steps = search.training.graph, search.problem.contract.sampler.calls
    mask = np.zeros((steps, len(graph.blocks)), dtype=bool)
    mask[[0, steps // 2]] = True
    monkeypatch.setattr(GradientSearch, "polish", lambda _: polished(mask))
    schedule = schedule_from(search)
    assert abs(pruned_ratio(schedule, graph) - RATIO) <= TOLERANCE < 1 - 2 / steps - RATIO
    assert all(schedule.computed[step] == set(graph.block_names) for step in (0, steps // 2))


def polished(mask: np.ndarray) -> Iterator[object]:
    yield from ()
    return Polished(mask, 30.0, 1.0)


def test_one_pruner_serves_any_ratio_from_its_file_alone(search_of, tmp_path) -> None:
    file = tmp_path / "search.pruner"
    trained = search_of(UNET, file)
    finish(trained.train())
    for order in ("bisection", "greedy"):
        read = search_of(UNET, file, polish=0, order=order)
        assert list(read.train()) == []
        trained.settings = replace(trained.settings, order=order)
        assert read.candidate(0.6).computed == trained.candidate(0.6).computed


def test_refusals(search_of, reference_model, traced, tmp_path) -> None:
    search = search_of(UNET)
    for ratio in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match=r"ratio .* is not in \[0, 1\): give the share of MACs to prune"):
            search.candidate(ratio)
    assert search.training.done == 0
    graph, contract = traced("digits-unet", "stage").blocks, contract_for(reference_model("digits-dit"))
    with pytest.raises(InputError, match="traced from model_class UNet2DConditionModel, but the contract names DiT"):
        problem_of(reference_model("digits-dit"), graph, "output", contract)
    file = tmp_path / "search.pruner"
    file.write_bytes(b"no pruner")
    with pytest.raises(InputError, match="is damaged"):
        search_of(UNET, file)

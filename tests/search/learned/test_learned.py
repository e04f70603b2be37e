"""The method: better than its start, resumable to the same result, the same with two processes, its loss by choice."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.learned_sampler import Combination, LearnedSampler
from dipgo_deploy.core.progress import finish
from dipgo_deploy.models import make_contract
from dipgo_deploy.models.schedulers import scheduler_from_spec
from dipgo_deploy.search import SearchOptions, method_options
from dipgo_deploy.search.fit.options import FitOptions
from dipgo_deploy.search.fit.teacher import Images
from dipgo_deploy.search.learned.chain import LearnedChain
from dipgo_deploy.search.learned.losses import log_mse, perceptual_loss
from dipgo_deploy.search.learned.options import LearnedOptions
from dipgo_deploy.search.learned.training import Pairs, Training
from dipgo_deploy.search.learned.workers import Workers
from dipgo_deploy.search.options import NOTE
from dipgo_deploy.search.run import search
from tests.search.runs import run

SMALL = {"calls": 2, "trajectories": 4, "iterations": 4, "batch": 2, "teacher": "full", "learning_rate": 3e-3}


def options(seed: int = 0, **settings) -> SearchOptions:
    return SearchOptions("learned", seed=seed, settings=method_options("learned", **{**SMALL, **settings}), images=4)


@pytest.fixture(scope="module")
def blocks(traced):
    return traced("digits-unet", "stage").blocks


@pytest.fixture(scope="module")
def contract(digits_unet):
    return make_contract(digits_unet, steps=6, guidance="none")


@pytest.fixture(autouse=True)
def coarse_start(monkeypatch) -> None:
    """A start without moved times, so that tests are quick and the descent has something to do."""
    monkeypatch.setattr("dipgo_deploy.search.learned.search._FEWEST_HELD_OUT", 4)
    fit_options = FitOptions.__init__
    monkeypatch.setattr(
        FitOptions, "__init__", lambda self, *args, **kw: fit_options(self, *args, **{**kw, "sweeps": 0})
    )


def test_learning_improves_on_its_start_and_keeps_the_best(digits_unet, blocks, contract) -> None:
    seen, schedule = run(search(digits_unet, contract, options(iterations=20, learning_rate=0.02), blocks=blocks))
    sampler = scheduler_from_spec(schedule.contract.sampler).sampler
    assert [progress.stage for progress in seen].count("learning") == 20 and schedule.steps == 2
    assert sampler.fitted["method"] == "learned" and schedule.origin["full_run"] == "DDIMScheduler with 6 calls"
    _, start = run(search(digits_unet, contract, options(iterations=0), blocks=blocks))
    assert float(schedule.origin["score_db"]) > float(start.origin["score_db"]) + 0.2
    _, wild = run(search(digits_unet, contract, options(iterations=3, learning_rate=50.0, clip=1e6), blocks=blocks))
    assert wild.origin["score_db"] == start.origin["score_db"]


def test_an_interrupted_training_continues_to_the_same_result(digits_unet, blocks, contract, tmp_path) -> None:
    whole = run(search(digits_unet, contract, options(iterations=14), blocks=blocks))[1]
    file = tmp_path / "a.training"
    work = search(digits_unet, contract, options(iterations=14, training=file), blocks=blocks)
    for progress in work:
        if progress.stage == "learning" and progress.done == 12:  # two steps after the file was written
            work.close()
    seen, continued = run(search(digits_unet, contract, options(iterations=14, training=file), blocks=blocks))
    notes = [progress.text for progress in seen if progress.stage == NOTE]
    assert notes == [f"continuing {file} after 10 of 14 steps"]
    assert {progress.stage for progress in seen} == {NOTE, "teacher", "learning"}
    assert continued.contract.sampler == whole.contract.sampler
    with pytest.raises(InputError, match="belongs to a search of other options"):
        run(search(digits_unet, contract, options(iterations=30, training=file), blocks=blocks))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InputError, match="is damaged"):
        run(search(digits_unet, contract, options(iterations=14, training=file), blocks=blocks))


START = LearnedSampler((900.0, 300.0), (Combination(1.1, 0.0, (-0.3,)), Combination(1.3, 0.0, (-0.5, 0.1))))


def trained(model, contract) -> list[torch.Tensor]:
    """The numbers after three steps, in this process or as one of several."""
    images = Images(model, contract, (1, 2, 3, 4), (1, 2, 3, 4), 1.0)
    targets = torch.tanh(images.noise)
    chain = LearnedChain(START, images.network(), images.noise)
    settings = LearnedOptions(calls=2, iterations=3, batch=4, warm_up=0, learning_rate=1e-2)
    pairs = Pairs(images, targets)
    training = Training(chain, pairs, pairs, log_mse, settings, 0, Workers(cpu=True), (999.0, 0.0))
    finish(training.run())
    return [number.clone() for number in training.average]


def _as_worker(rank: int, model, contract, port: int, folder: Path) -> None:
    PartialState._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    numbers = trained(model, contract)
    torch.save([numbers, Workers(cpu=True).count], folder / f"{rank}.pt")


def test_two_processes_learn_what_one_process_learns(digits_unet, contract, tmp_path) -> None:
    alone = trained(digits_unet, contract)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _as_worker, (digits_unet, contract, port, tmp_path), nprocs=2, start_method="fork"
    )
    for rank in range(2):
        numbers, count = torch.load(tmp_path / f"{rank}.pt")
        assert count == 2
        for one, both in zip(alone, numbers, strict=True):
            torch.testing.assert_close(both, one, rtol=1e-4, atol=1e-6)


def features(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two kinds of features: a coarse image, and its mean."""
    coarse = torch.nn.functional.avg_pool2d(images, 4)
    return coarse, coarse.mean(dim=(1, 2, 3), keepdim=True)


def test_a_perceptual_loss_compares_features_of_the_named_network(digits_unet, blocks, contract) -> None:
    loss = perceptual_loss(f"{__name__}:features", torch.device("cpu"))
    images, target = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    pairs = zip(features(images), features(target), strict=True)
    assert float(loss(images, target)) == pytest.approx(sum(float(log_mse(*pair)) for pair in pairs) / 2, abs=1e-4)
    settings = options(loss="perceptual", features=f"{__name__}:features")
    seen, schedule = run(search(digits_unet, contract, settings, blocks=blocks))
    notes = [progress.text for progress in seen if progress.stage == NOTE]
    assert notes == [f"learning from features of {__name__}:features: judge the images by another network"]
    assert schedule.origin["loss"] == "perceptual"
    with pytest.raises(InputError, match="cannot be imported"):
        perceptual_loss("tests.nothing:here", torch.device("cpu"))
    with pytest.raises(InputError, match="fails on images of shape"):
        perceptual_loss(f"{__name__}:trained", torch.device("cpu"))(images, target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calls": 0}, "calls must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
        ({"loss": "ssim"}, "choose log-mse, perceptual"),
        ({"loss": "perceptual"}, "give both loss perceptual and features"),
        ({"features": "a:b"}, "give both loss perceptual and features"),
        ({"loss": "perceptual", "features": "a.b"}, "give package.module:attribute"),
        ({"average": 1.0}, r"average must be in \[0, 1\)"),
    ],
)
def test_wrong_options_are_refused(settings, message) -> None:
    with pytest.raises(UsageError, match=message):
        options(**settings)

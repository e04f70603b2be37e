"""The recipes of the digits models resume to the same weights, and their refusals say what to do."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dipgo_deploy.core.errors import InputError
from examples.digits.train import train
from examples.digits.training_loop import CHECKPOINT, TrainOptions, learning_rate

TOY = TrainOptions(steps=6, batch=4, warmup=2, checkpoint_every=3)
WEIGHTS = {
    "classifier": "model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "dit": "transformer/diffusion_pytorch_model.safetensors",
}


@pytest.mark.parametrize("task", sorted(WEIGHTS))
def test_resumed_run_equals_uninterrupted_run(task: str, tmp_path: Path) -> None:
    whole = list(train(task, tmp_path / "whole", TOY))
    stopped = list(islice(train(task, tmp_path / "parts", TOY), 4))  # step 4 has no checkpoint and is lost
    resumed = list(train(task, tmp_path / "parts", TOY, resume=True))
    assert [p.done for p in resumed] == [4, 5, 6]
    assert [p.text for p in whole] == [p.text for p in stopped[:3] + resumed]
    expected, found = (load_file(tmp_path / name / WEIGHTS[task]) for name in ("whole", "parts"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_resume_refuses_a_checkpoint_of_other_options(tmp_path: Path) -> None:
    list(train("classifier", tmp_path, TOY))
    with pytest.raises(InputError, match=r"other options.*steps.*without --resume"):
        next(train("classifier", tmp_path, replace(TOY, steps=9), resume=True))


def test_a_finished_run_leaves_no_temporary_file(tmp_path: Path) -> None:
    list(train("classifier", tmp_path, TOY))
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, "config.json", "model.safetensors"]


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    rates = [learning_rate(step, TOY) for step in range(7)]
    assert rates[0] == TOY.learning_rate / 2 and rates[2] == max(rates) == TOY.learning_rate
    assert rates[6] == pytest.approx(0.0, abs=1e-12)

"""The recipe of the reference models: `python -m dipgo_deploy.models.digits.train unet --out DIR`.

Three tasks share one loop (`checkpoint.train_loop`). Each writes `checkpoint.pt` into the folder it
is given and, at the end, the averaged weights as a model folder. `--resume` continues an
interrupted run and gives bit for bit what an uninterrupted run would have given on that machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.models.digits.checkpoint import Loss, Progress, TrainOptions, train_loop
from dipgo_deploy.models.digits.classifier import DigitsClassifier, save_classifier
from dipgo_deploy.models.digits.data import CLASSES, augment, load_split
from dipgo_deploy.models.digits.denoisers import Denoiser, Kind, build_denoiser, build_scheduler, save_denoiser

__all__ = ["DEFAULTS", "Task", "train"]

Task = Literal["classifier", "unet", "dit"]
"""What can be trained."""

DEFAULTS: dict[str, TrainOptions] = {
    "classifier": TrainOptions(steps=1500, label_dropout=0.0, ema_decay=0.99),
    "unet": TrainOptions(),
    "dit": TrainOptions(steps=3200),
}
"""The knobs of the shipped models."""


def train(task: Task, out: Path, options: TrainOptions, *, resume: bool = False) -> Iterator[Progress]:
    """Train one reference model, yielding after each step; the model folder is written at the end.

    Args:
        task: which model.
        out: folder for `checkpoint.pt` and the finished model.
        options: the knobs; `DEFAULTS[task]` holds those of the shipped models.
        resume: continue from the checkpoint in `out`, where there is one.

    Raises:
        InputError: `resume` meets a checkpoint made with other options.
    """
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model, average = (DigitsClassifier(), DigitsClassifier()) if task == "classifier" else _pair(task)
    loss = _classifier_loss(model, options) if task == "classifier" else _denoiser_loss(model, options)
    yield from train_loop(model, average, loss, options, out, resume=resume)
    if task == "classifier":
        save_classifier(average, out)
    else:
        save_denoiser(average, out)


def _pair(kind: Kind) -> tuple[Denoiser, Denoiser]:
    model = build_denoiser(kind)
    return model.to(memory_format=torch.channels_last), build_denoiser(kind)


def _classifier_loss(classifier: DigitsClassifier, options: TrainOptions) -> Loss:
    """Cross-entropy on augmented digits with a little noise, so that samples are judged by shape."""
    data = load_split("train")

    def loss(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(data.labels), (options.batch,), generator=generator)
        images = augment(data.images[chosen], generator, shift=0.12, scale=0.1, turn=0.15)
        images = images + 0.1 * torch.randn(images.shape, generator=generator)
        return F.cross_entropy(classifier(images), data.labels[chosen], label_smoothing=0.05)

    return loss


def _denoiser_loss(denoiser: Denoiser, options: TrainOptions) -> Loss:
    """Mean squared error of the predicted noise (DDPM's simple loss), labels dropped at random."""
    data, scheduler = load_split("train"), build_scheduler()
    steps = scheduler.config.num_train_timesteps

    def loss(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(data.labels), (options.batch,), generator=generator)
        images = augment(data.images[chosen], generator)
        noise = torch.randn(images.shape, generator=generator)
        # One draw per equal share of the schedule: the same mean loss with less noise in it.
        within = torch.rand(options.batch, generator=generator)
        spread = torch.randperm(options.batch, generator=generator) + within
        timesteps = (spread * (steps / options.batch)).long().clamp(max=steps - 1)
        dropped = torch.rand(options.batch, generator=generator) < options.label_dropout
        labels = torch.where(dropped, CLASSES, data.labels[chosen])
        predicted = denoiser(scheduler.add_noise(images, noise, timesteps), timesteps, labels)
        return F.mse_loss(predicted.float(), noise)

    return loss


def main() -> None:
    """Read the command line, run one task and print its progress every 50 steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=get_args(Task))
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the model")
    parser.add_argument("--steps", type=int, help="optimiser steps; the shipped model's number by default")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    given = parser.parse_args()
    options = DEFAULTS[given.task]
    if given.steps is not None:
        options = replace(options, steps=given.steps)
    torch.set_num_threads(2)  # the shipped models' setting; the sums of other counts differ in the last bit
    try:
        _report(train(given.task, given.out, options, resume=given.resume), options.steps)
    except DipgoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _report(run: Iterator[Progress], steps: int) -> None:
    recent: list[float] = []
    for progress in run:
        recent = [*recent[-49:], progress.loss]
        if progress.step % 50 == 0 or progress.step == steps:
            loss, done = sum(recent) / len(recent), f"{progress.step}/{steps}"
            print(f"step {done} loss {loss:.4f} {progress.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()

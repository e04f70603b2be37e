"""The recipe of the reference models: `python -m examples.digits.train unet --out DIR`.

Three tasks share one loop (`training_loop.train_loop`). Each task writes `checkpoint.pt` into its output folder and, at
the end, the averaged weights as a model folder. `--resume` continues an interrupted run. On the same machine the result
equals that of an uninterrupted run bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.progress import Progress, Work, finish
from dipgo_deploy.models.digits import CLASSES, DigitsClassifier, load_split
from examples.digits.denoisers import Denoiser, Kind, build_denoiser, build_scheduler, save_denoiser
from examples.digits.training_loop import Loss, TrainOptions, train_loop

__all__ = ["DEFAULTS", "Task", "augment", "save_classifier", "train"]

Task = Literal["classifier", "unet", "dit"]
"""A model to train."""

DEFAULTS: dict[str, TrainOptions] = {
    "classifier": TrainOptions(steps=1500, label_dropout=0.0, ema_decay=0.99),
    "unet": TrainOptions(),
    "dit": TrainOptions(steps=3200),
}
"""Settings of the shipped models."""


def train(task: Task, out: Path, options: TrainOptions, *, resume: bool = False) -> Work[Path]:
    """Train one reference model. Progress is yielded after each step, and the model folder is written at the end.

    Args:
        task: which model.
        out: folder for `checkpoint.pt` and the finished model.
        options: the settings. `DEFAULTS[task]` holds those of the shipped models.
        resume: continue from the checkpoint in `out`, if there is one.

    Returns:
        ``out``.

    Raises:
        InputError: with `resume`, the checkpoint was made with other options.
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
    return out


def save_classifier(classifier: DigitsClassifier, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(classifier.config, indent=2) + "\n")
    save_file(classifier.state_dict(), folder / "model.safetensors")


def augment(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    shift: float = 0.06,
    scale: float = 0.06,
    turn: float = 0.08,
) -> torch.Tensor:
    """Shift, scale and rotate each image slightly, by bilinear resampling.

    Args:
        images: (B, 1, H, W) in [-1, 1].
        generator: random numbers come from here.
        shift: largest shift as a share of half the image (0.06 is half a pixel of 16).
        scale: largest relative change of size.
        turn: largest rotation, radians.

    Returns:
        New images of the same shape. Pixels from outside are paper (-1).
    """
    draw = torch.rand(len(images), 4, generator=generator) * 2 - 1
    angle, size = draw[:, 0] * turn, 1 + draw[:, 1] * scale
    cos, sin, move = angle.cos() * size, angle.sin() * size, draw[:, 2:] * shift
    rows = [torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def _pair(kind: Kind) -> tuple[Denoiser, Denoiser]:
    model = build_denoiser(kind)
    return model.to(memory_format=torch.channels_last), build_denoiser(kind)


def _classifier_loss(classifier: DigitsClassifier, options: TrainOptions) -> Loss:
    """Cross-entropy on augmented digits with a little noise, so that it recognizes samples by their shape."""
    data = load_split("train")

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(data.labels), (options.batch,), generator=generator)
        images = augment(data.images[indices], generator, shift=0.12, scale=0.1, turn=0.15)
        images = images + 0.1 * torch.randn(images.shape, generator=generator)
        return F.cross_entropy(classifier(images), data.labels[indices], label_smoothing=0.05)

    return loss


def _denoiser_loss(denoiser: Denoiser, options: TrainOptions) -> Loss:
    """Mean squared error of the predicted noise (DDPM's simple loss), with labels dropped at random."""
    data, scheduler = load_split("train"), build_scheduler()
    steps = scheduler.config.num_train_timesteps

    def loss(generator: torch.Generator) -> torch.Tensor:
        indices = torch.randint(len(data.labels), (options.batch,), generator=generator)
        images = augment(data.images[indices], generator)
        noise = torch.randn(images.shape, generator=generator)
        # Stratified timesteps, one per equal share of the schedule: the same mean loss with less variance.
        offsets = torch.rand(options.batch, generator=generator)
        positions = torch.randperm(options.batch, generator=generator) + offsets
        timesteps = (positions * (steps / options.batch)).long().clamp(max=steps - 1)
        dropped = torch.rand(options.batch, generator=generator) < options.label_dropout
        labels = torch.where(dropped, CLASSES, data.labels[indices])
        predicted = denoiser(scheduler.add_noise(images, noise, timesteps), timesteps, labels)
        return F.mse_loss(predicted.float(), noise)

    return loss


def main() -> None:
    """Parse the command line, run one task and print its progress every 50 steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=get_args(Task))
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the model")
    parser.add_argument("--steps", type=int, help="number of optimizer steps (default: that of the shipped model)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    arguments = parser.parse_args()
    options = DEFAULTS[arguments.task]
    if arguments.steps is not None:
        options = replace(options, steps=arguments.steps)
    torch.set_num_threads(2)  # As for the shipped models: other numbers of threads change the last bit of sums.
    try:
        finish(train(arguments.task, arguments.out, options, resume=arguments.resume), _print_every_50_steps)
    except DipgoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _print_every_50_steps(progress: Progress) -> None:
    if progress.done % 50 == 0 or progress.done == progress.total:
        print(progress, flush=True)


if __name__ == "__main__":
    main()

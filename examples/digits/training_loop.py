"""One resumable training loop, used by all three recipes of `train`.

1. All random numbers of step `n` come from a generator seeded with (seed, n). So a resumed run sees the same numbers as
   an uninterrupted run.
2. The checkpoint is one file, written atomically. A run that dies while writing leaves the previous checkpoint intact.
3. The checkpoint is read with `weights_only=True`. It holds only tensors, numbers and strings.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.progress import Progress, Work

__all__ = ["CHECKPOINT", "Loss", "TrainOptions", "learning_rate", "train_loop"]

CHECKPOINT = "checkpoint.pt"
"""Name of the file from which an interrupted run continues."""

_STATES = ("model", "average", "optimizer")

Loss = Callable[[torch.Generator], torch.Tensor]
"""Draws a batch and gives its loss, a scalar."""


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a recipe.

    Attributes:
        steps: number of optimizer steps. The cosine learning rate ends at zero.
        batch: images per step.
        learning_rate: peak of AdamW's learning rate, reached after `warmup` steps.
        warmup: steps of linear warm-up.
        weight_decay: AdamW's decoupled weight decay.
        ema_decay: decay of the weight average, which is the saved model. It is lower in the first steps.
        label_dropout: share of labels replaced by the null class, for classifier-free guidance.
        checkpoint_every: steps between checkpoints. The last step always writes a checkpoint.
        seed: seed of the initial weights and of every step.
    """

    steps: int = 2000
    batch: int = 64
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    label_dropout: float = 0.1
    checkpoint_every: int = 200
    seed: int = 0


def train_loop(
    model: nn.Module, average: nn.Module, loss: Loss, options: TrainOptions, out: Path, *, resume: bool
) -> Work[None]:
    """Train `model` on `loss` and keep its moving average in `average`. Progress is yielded after each step.

    Args:
        model: the module that `loss` runs. It is changed in place.
        average: a module of the same class, overwritten with the averaged weights.
        loss: draws one batch with the generator that is passed to it, and returns a scalar.
        options: the settings.
        out: folder of the checkpoint.
        resume: continue from the checkpoint in `out` if there is one.

    Raises:
        InputError: the checkpoint was made with other options.
    """
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), options.learning_rate, betas=(0.9, 0.99), weight_decay=options.weight_decay
    )
    run = _Run(model, average, optimizer, options, out / CHECKPOINT)
    start = run.restore() if resume and run.path.exists() else 0
    for step in range(start, options.steps):
        value = run.step(loss, step)
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
            run.save(step + 1)
        yield Progress("training", step + 1, options.steps, f"loss {value:.6g}")


def learning_rate(step: int, options: TrainOptions) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then half a cosine down to zero."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    share = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class _Run:
    """The state that a checkpoint holds, and the path of its file."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    options: TrainOptions
    path: Path

    def step(self, loss: Loss, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.options)
        value = loss(torch.Generator().manual_seed(self.options.seed * 1_000_003 + step))
        self.optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.options.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return value.item()

    def save(self, step: int) -> None:
        state = {name: getattr(self, name).state_dict() for name in _STATES}
        state |= {"step": step, "options": asdict(self.options)}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.path, buffer.getvalue())

    def restore(self) -> int:
        state: dict[str, Any] = torch.load(self.path, weights_only=True)
        current, saved = asdict(self.options), state["options"]
        if current != saved:
            changed = {name: (value, saved.get(name)) for name, value in current.items() if value != saved.get(name)}
            raise InputError(
                f"{self.path} was made with other options (now, then): {changed}: use the same options, or start again "
                "without --resume"
            )
        for name in _STATES:
            getattr(self, name).load_state_dict(state[name])
        return int(state["step"])

"""One resumable training loop, used by all three recipes of `train`.

1. Every draw of step `n` comes from one generator seeded with (seed, n), so a resumed run sees the
   same numbers as an uninterrupted one.
2. The checkpoint is one file, written under a temporary name and then renamed: a run that dies
   while writing leaves the previous checkpoint whole.
3. It is read with `weights_only=True`; it holds tensors, numbers and strings, nothing else.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError

__all__ = ["CHECKPOINT", "Loss", "Progress", "TrainOptions", "learning_rate", "train_loop"]

CHECKPOINT = "checkpoint.pt"
"""Name of the file that an interrupted training goes on from."""

_STATES = ("model", "average", "optimizer")
Loss = Callable[[torch.Generator], torch.Tensor]
"""Draws a batch and gives its loss, a scalar."""


@dataclass(frozen=True)
class TrainOptions:
    """The knobs of a recipe.

    Attributes:
        steps: optimiser steps in all; the cosine learning rate ends at zero there.
        batch: images per step.
        learning_rate: peak of AdamW's learning rate, reached after `warmup` steps.
        warmup: steps of linear warm-up.
        weight_decay: AdamW's decoupled weight decay.
        ema_decay: decay of the weight average that is shipped; lower in the first steps.
        label_dropout: share of labels replaced by the null class, for classifier-free guidance.
        checkpoint_every: steps between checkpoints; the last step always writes one.
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


@dataclass(frozen=True)
class Progress:
    """One finished step: its number from 1, its loss, and the seconds since this run began."""

    step: int
    loss: float
    seconds: float


def train_loop(
    model: nn.Module, average: nn.Module, loss: Loss, options: TrainOptions, out: Path, *, resume: bool
) -> Iterator[Progress]:
    """Train `model` on `loss` and keep its moving average in `average`, yielding after each step.

    Args:
        model: the module that `loss` runs; changed in place.
        average: a module of the same class, overwritten with the averaged weights.
        loss: draws one batch from the generator it is given and returns the scalar to minimise.
        options: the knobs.
        out: folder of the checkpoint.
        resume: continue from the checkpoint in `out` where there is one; otherwise begin anew.

    Raises:
        InputError: the checkpoint was made with other options.
    """
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), options.learning_rate, betas=(0.9, 0.99), weight_decay=options.weight_decay
    )
    run, begun = _Run(model, average, optimizer, options, out / CHECKPOINT), time.perf_counter()
    start = run.restore() if resume and run.path.exists() else 0
    for step in range(start, options.steps):
        value = run.step(loss, step)
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
            run.save(step + 1)
        yield Progress(step + 1, value, time.perf_counter() - begun)


def learning_rate(step: int, options: TrainOptions) -> float:
    """Return the learning rate of `step` (from 0): linear warm-up, then half a cosine down to zero."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class _Run:
    """The state that a checkpoint holds, and where it is written."""

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
        wanted, found = asdict(self.options), state["options"]
        if wanted != found:
            changed = {name: (value, found.get(name)) for name, value in wanted.items() if value != found.get(name)}
            raise InputError(
                f"{self.path} was made with other options (wanted, found): {changed}; "
                "run with the same options, or without --resume to begin anew"
            )
        for name in _STATES:
            getattr(self, name).load_state_dict(state[name])
        return int(state["step"])

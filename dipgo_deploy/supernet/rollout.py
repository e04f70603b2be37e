"""The reference: what a schedule means, on the live model with the sampler's own steps.

1. Step i feeds the network the scaled latent, its rows doubled under concatenated guidance, unconditional ones first.
2. A computed block computes and its feature is kept; a reused one returns its backup (supernet/backup.py).
3. A step that reuses ``prediction`` and computes no other block calls no network. One that computes any calls it, for
   the features; its output is dropped.
4. The sampler sees ``u + scale * (c - u)``, the first half of the channels where the network has twice the latent's.

Nothing here knows of programs, slots or lowering: every faster path is judged by this one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.schedule import Schedule, check_schedule
from dipgo_deploy.supernet.backup import BackupStore, block_input
from dipgo_deploy.supernet.network import Denoiser, GuidedNetwork
from dipgo_deploy.supernet.stepper import SamplerStepper
from dipgo_deploy.supernet.surgery import gated

__all__ = ["Rollout", "RolloutStep", "last_latent", "reference_trajectory"]


@dataclass(frozen=True)
class RolloutStep:
    """One step of the reference.

    ``latent`` (B, C, H, W) is the one after the step, the image after the last; ``prediction`` the network's output (or
    its backup) that the sampler's step stood on, all rows; ``stored`` what was computed and kept, by stored name
    (``<block>:<k>``, ``<block>:residual``); ``called`` whether the network ran.
    """

    step: int
    latent: torch.Tensor
    prediction: torch.Tensor
    stored: Mapping[str, torch.Tensor]
    called: bool


def reference_trajectory(
    model: Denoiser,
    schedule: Schedule,
    noise: torch.Tensor | np.ndarray,
    conditioning: Mapping[str, torch.Tensor | np.ndarray],
    *,
    guidance_scale: float = 1.0,
    seed: int | None = None,
) -> Iterator[RolloutStep]:
    """Run ``schedule`` on the live model, step by step.

    Network and features work in the module's dtype, latents and sampler in float32 or wider.

    Args:
        model: the network; it is under surgery only while it is called, never while a step is looked at.
        schedule: what to compute; its contract gives sampler and guidance.
        noise: (B, C, H, W), standard normal.
        conditioning: every network input but latent and timestep, by name, rows first.
        guidance_scale: weight of the conditional output under concatenated guidance.
        seed: of the sampler's own noise; see SamplerStepper.

    Raises:
        InputError: the schedule cannot be run.

    """
    rollout = Rollout(model, schedule, noise, conditioning, guidance_scale=guidance_scale, seed=seed)
    while rollout.step < schedule.steps:
        yield rollout.advance()


def last_latent(trajectory: Iterator[RolloutStep]) -> torch.Tensor:
    """The image of a trajectory; the steps before it are let go one by one, with the features they hold."""
    return deque(trajectory, maxlen=1).pop().latent


class Rollout:
    """A reference trajectory that stands before ``step``; arguments and errors as of `reference_trajectory`."""

    def __init__(
        self,
        model: Denoiser,
        schedule: Schedule,
        noise: torch.Tensor | np.ndarray,
        conditioning: Mapping[str, torch.Tensor | np.ndarray],
        *,
        guidance_scale: float = 1.0,
        seed: int | None = None,
    ) -> None:
        check_schedule(schedule)
        self.schedule, self.step = schedule, 0
        self._network = GuidedNetwork(model, schedule.contract, conditioning, guidance_scale)
        self._store = BackupStore(schedule)
        self._stepper = SamplerStepper(schedule.contract.sampler)
        self._stepper.restart(len(noise), seed)
        self._output: torch.Tensor | None = None
        wide = torch.as_tensor(noise).to(self._network.device, self._network.wide)
        self._latent = wide * self._stepper.initial_scale

    def fork(self, schedule: Schedule) -> Rollout:
        """A rollout that stands where this one does and goes on by ``schedule``, sharing what is kept; neither moves
        the other.

        Raises UsageError for a schedule of other blocks or kind, that differs before this step, or that forecasts.
        """
        old = self.schedule
        alike = (schedule.blocks, schedule.kind, schedule.contract) == (old.blocks, old.kind, old.contract)
        if not alike or schedule.computed[: self.step] != old.computed[: self.step]:
            raise UsageError(f"a fork at step {self.step} takes a schedule that agrees up to there: begin a rollout")
        if old.forecasts or schedule.forecasts:
            raise UsageError("a fork takes schedules that hold, one of these forecasts: begin a rollout")
        check_schedule(schedule)
        other = copy.copy(self)
        other.schedule = schedule
        other._store, other._stepper = self._store.fork(schedule), self._stepper.fork()
        return other

    def advance(self) -> RolloutStep:
        """Do one step."""
        step, stepper = self.step, self._stepper
        called = bool(self.schedule.computed[step])
        stored: Mapping[str, torch.Tensor] = {}
        if called:
            stored = self._call_network(stepper.scale_input(step, self._latent), stepper.timestep(step))
        prediction = self._prediction()
        self._latent = stepper.advance(step, self._network.guided(prediction), self._latent)
        self.step += 1
        return RolloutStep(step, self._latent, prediction, stored, called)

    @torch.no_grad()
    def _call_network(self, latent: torch.Tensor, timestep: float) -> dict[str, torch.Tensor]:
        """Run the gated network; returns what was computed and kept."""
        step, stored = self.step, dict[str, torch.Tensor]()

        def gate(block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entry = block_input(args, kwargs)
            if not self.schedule.is_computed(step, block):
                return self._store.backup(step, block, entry)
            feature = forward(*args, **kwargs)
            stored.update(self._store.keep(step, block, feature, entry))
            return feature

        blocks = [block for block in self.schedule.blocks if block != PREDICTION]
        with gated(self._network.model.module, blocks, gate):
            self._output = self._network(latent, timestep)
        if self.schedule.is_computed(step, PREDICTION):
            stored.update(self._store.keep(step, PREDICTION, self._output))
        return stored

    def _prediction(self) -> torch.Tensor:
        """The prediction that the sampler's step stands on: computed there, or its backup."""
        if self._output is not None and self.schedule.is_computed(self.step, PREDICTION):
            return self._output
        return self._store.backup(self.step, PREDICTION)

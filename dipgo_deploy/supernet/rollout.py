"""The reference: what a schedule means, on the live model with the sampler's own steps.

1. Step i feeds the scaled latent to the network. Under concatenated guidance its rows are doubled, unconditional rows
   first.
2. A computed block computes, and its feature is kept. A reused block returns its backup (supernet/backup.py).
3. A step that reuses ``prediction`` and computes no other block does not call the network. If it computes any block, it
   calls the network for the features and drops the output.
4. The sampler sees ``u + scale * (c - u)``. If the network has twice the latent's channels, the first half counts.

Nothing here knows about programs, slots or lowering. Every faster path is compared with this one.
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

    Attributes:
        step: its number.
        latent: the latent (B, C, H, W) after the step. After the last step it is the image.
        prediction: all rows of the prediction that the sampler's step used, computed or from its backup.
        stored: what was computed and kept, by stored name (``<block>:<k>``, ``<block>:residual``).
        called: whether the network ran.
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
    """Run a schedule on the live model, step by step.

    Network and features use the module's dtype. Latents and sampler use float32 or wider.

    Args:
        model: the network. It is under surgery only while it is called, never while a step is yielded.
        schedule: what to compute. Its contract gives sampler and guidance.
        noise: (B, C, H, W), standard normal.
        conditioning: every network input but latent and timestep, by name, rows first.
        guidance_scale: weight of the conditional output under concatenated guidance.
        seed: of the sampler's own noise (see SamplerStepper).

    Yields:
        Every step.

    Raises:
        InputError: the schedule cannot be run.
    """
    rollout = Rollout(model, schedule, noise, conditioning, guidance_scale=guidance_scale, seed=seed)
    while rollout.step < schedule.steps:
        yield rollout.advance()


def last_latent(trajectory: Iterator[RolloutStep]) -> torch.Tensor:
    """The image of a trajectory. Earlier steps are dropped one by one, together with their features."""
    return deque(trajectory, maxlen=1).pop().latent


class Rollout:
    """A reference trajectory that has yet to do ``step``. Arguments and errors are those of `reference_trajectory`."""

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
        latent = torch.as_tensor(noise).to(self._network.device, self._network.sampler_dtype)
        self._latent = latent * self._stepper.initial_scale

    def fork(self, schedule: Schedule) -> Rollout:
        """Continue from here under another schedule. The kept features are shared, and neither rollout moves the other.

        Raises UsageError for a schedule with other blocks, kind or contract, with other past steps, or with forecasts.
        """
        past = self.schedule
        same = (schedule.blocks, schedule.kind, schedule.contract) == (past.blocks, past.kind, past.contract)
        if not same or schedule.computed[: self.step] != past.computed[: self.step]:
            raise UsageError(
                f"a fork at step {self.step} needs a schedule that agrees up to that step: start a new rollout"
            )
        if past.forecasts or schedule.forecasts:
            raise UsageError("a fork needs schedules that hold, but one of the two forecasts: start a new rollout")
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
        """Run the gated network and return what was computed and kept."""
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
        """The prediction that the sampler's step uses: computed at this step, or its backup."""
        if self._output is not None and self.schedule.is_computed(self.step, PREDICTION):
            return self._output
        return self._store.backup(self.step, PREDICTION)

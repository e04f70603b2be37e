"""The reference: what a schedule means, on the live model with the sampler's own steps.

1. Step i feeds the network the scaled latent, its rows doubled under concatenated guidance, unconditional ones first.
2. A computed block computes and its feature is kept; a reused one returns its backup (supernet/backup.py).
3. A step that reuses ``prediction`` and computes no other block calls no network. One that computes any calls it, for
   the features; its output is dropped.
4. The sampler sees ``u + scale * (c - u)``, the first half of the channels where the network has twice the latent's.

Nothing here knows of programs, slots or lowering: every faster path is judged by this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.schedule import Schedule, check_schedule
from dipgo_deploy.supernet.backup import BackupStore, block_input
from dipgo_deploy.supernet.network import Denoiser, GuidedNetwork
from dipgo_deploy.supernet.stepper import SamplerStepper
from dipgo_deploy.supernet.surgery import gated

__all__ = ["RolloutStep", "last_latent", "reference_trajectory"]


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
    check_schedule(schedule)
    network = GuidedNetwork(model, schedule.contract, conditioning, guidance_scale)
    rollout = _Rollout(network, schedule)
    stepper = SamplerStepper(schedule.contract.sampler)
    stepper.restart(len(noise), seed)
    latent = torch.as_tensor(noise).to(network.device, network.wide) * stepper.initial_scale
    for step in range(schedule.steps):
        called = bool(schedule.computed[step])
        stored = rollout.call_network(step, stepper.scale_input(step, latent), stepper.timestep(step)) if called else {}
        prediction = rollout.prediction(step)
        latent = stepper.advance(step, network.guided(prediction), latent)
        yield RolloutStep(step, latent, prediction, stored, called)


def last_latent(trajectory: Iterator[RolloutStep]) -> torch.Tensor:
    """The image of a trajectory; the steps before it are let go one by one, with the features they hold."""
    return deque(trajectory, maxlen=1).pop().latent


class _Rollout:
    """The network's side of a trajectory: its gates and backups."""

    def __init__(self, network: GuidedNetwork, schedule: Schedule) -> None:
        self.network, self.schedule = network, schedule
        self.store = BackupStore(schedule)
        self._output: torch.Tensor | None = None

    @torch.no_grad()
    def call_network(self, step: int, latent: torch.Tensor, timestep: float) -> dict[str, torch.Tensor]:
        """Run the gated network; returns what was computed and kept."""
        stored: dict[str, torch.Tensor] = {}

        def gate(block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entry = block_input(args, kwargs)
            if not self.schedule.is_computed(step, block):
                return self.store.backup(step, block, entry)
            feature = forward(*args, **kwargs)
            stored.update(self.store.keep(step, block, feature, entry))
            return feature

        blocks = [block for block in self.schedule.blocks if block != PREDICTION]
        with gated(self.network.model.module, blocks, gate):
            self._output = self.network(latent, timestep)
        if self.schedule.is_computed(step, PREDICTION):
            stored.update(self.store.keep(step, PREDICTION, self._output))
        return stored

    def prediction(self, step: int) -> torch.Tensor:
        """The prediction that the sampler's step ``step`` stands on: computed there, or its backup."""
        if self._output is not None and self.schedule.is_computed(step, PREDICTION):
            return self._output
        return self.store.backup(step, PREDICTION)

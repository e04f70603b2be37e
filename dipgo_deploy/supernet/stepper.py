"""The sampler's own steps: a diffusers scheduler that can be restarted, with separate noise for every image."""

from __future__ import annotations

import copy

import torch

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.schedulers import (
    SCHEDULER_ERRORS,
    cause,
    noise_arguments,
    scheduler_from_spec,
    step_arguments,
)

__all__ = ["SamplerStepper"]


class SamplerStepper:
    """A diffusers scheduler indexed by network call (step) instead of timestep.

    1. Schedulers keep a history, so every run starts with ``restart``.
    2. Image i of a batch has its own generator, seeded ``seed + i``, so its noise does not depend on the batch. A
       caller that splits images over several runs adds the number of finished images to the seed.
    3. Some schedulers ignore the generators. Their noise repeats with the seed, but differs between batch sizes.
    """

    def __init__(self, spec: SamplerSpec) -> None:
        self._fresh = scheduler_from_spec(spec)
        self._arguments = step_arguments(spec)
        self.restart(1)

    @property
    def initial_scale(self) -> float:
        """Factor from standard normal noise to the first latent."""
        return float(getattr(self._fresh, "init_noise_sigma", 1.0))  # Flow-matching schedulers have none.

    def restart(self, batch: int, seed: int | None = None) -> None:
        """Forget the last run, and prepare for ``batch`` images with sampler noise from ``seed`` (None: 0)."""
        self._scheduler = copy.deepcopy(self._fresh)
        self._seed = seed or 0
        self._noise = noise_arguments(self._scheduler, self._seed, batch)

    def fork(self) -> SamplerStepper:
        """An independent stepper that continues from here, with copies of history and noise."""
        other = copy.copy(self)
        other._scheduler = copy.deepcopy(self._scheduler)
        other._noise = {name: [g.clone_state() for g in generators] for name, generators in self._noise.items()}
        return other

    def timestep(self, step: int) -> float:
        """The timestep of network call ``step``."""
        return float(self._scheduler.timesteps[step])

    def scale_input(self, step: int, latent: torch.Tensor) -> torch.Tensor:
        """The network's input (B, C, H, W) at ``step`` for a latent."""
        scale = getattr(self._scheduler, "scale_model_input", None)
        return latent if scale is None else scale(latent, self._scheduler.timesteps[step])

    def advance(self, step: int, output: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Do one sampler step. All tensors are (B, C, H, W).

        Args:
            step: number of the network call.
            output: the guided output.
            latent: the latent before the step.

        Returns:
            The latent after the step.

        Raises:
            InputError: the scheduler does not take such latents.
        """
        # Some schedulers draw from the global generator in any case, so it is seeded for them and restored.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed + step)
            timestep = self._scheduler.timesteps[step]
            try:
                return self._scheduler.step(
                    output, timestep, latent, return_dict=False, **self._noise, **self._arguments
                )[0]
            except SCHEDULER_ERRORS as error:
                name = type(self._scheduler).__name__
                raise InputError(f"{name} fails at step {step} ({cause(error)}): choose another sampler") from error

"""The sampler's own steps: a diffusers scheduler that can be started anew, with noise of its own for every image."""

from __future__ import annotations

import copy
import inspect

import torch

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.models.samplers import scheduler_from_spec

__all__ = ["SamplerStepper"]


class SamplerStepper:
    """A diffusers scheduler indexed by network call (step) instead of timestep.

    Schedulers keep a history, so every run begins with ``restart``. Image i of a batch draws from a generator of its
    own, seeded ``seed + i``: its noise does not depend on the batch, and a caller that splits images over several runs
    passes the seed of the first plus the images done. Noise that a scheduler draws past the generators it is given
    repeats with the seed, but not across batch sizes.
    """

    def __init__(self, spec: SamplerSpec) -> None:
        self._fresh = scheduler_from_spec(spec)
        self._takes_generator = "generator" in inspect.signature(self._fresh.step).parameters
        self.restart(1)

    @property
    def initial_scale(self) -> float:
        """Factor from standard normal noise to the first latent."""
        return float(getattr(self._fresh, "init_noise_sigma", 1.0))  # Samplers of flow matching have none.

    def restart(self, batch: int, seed: int | None = None) -> None:
        """Forget the last run; ``batch`` images follow, with sampler noise from ``seed`` (None: 0)."""
        self._scheduler = copy.deepcopy(self._fresh)
        self._seed = seed or 0
        self._generators = [torch.Generator().manual_seed(self._seed + index) for index in range(batch)]

    def fork(self) -> SamplerStepper:
        """A stepper that goes on from here by itself: history and noise are copies."""
        other = copy.copy(self)
        other._scheduler = copy.deepcopy(self._scheduler)
        other._generators = [generator.clone_state() for generator in self._generators]
        return other

    def timestep(self, step: int) -> float:
        """The timestep of network call ``step``."""
        return float(self._scheduler.timesteps[step])

    def scale_input(self, step: int, latent: torch.Tensor) -> torch.Tensor:
        """The network's input at ``step`` for a latent (B, C, H, W)."""
        scale = getattr(self._scheduler, "scale_model_input", None)
        return latent if scale is None else scale(latent, self._scheduler.timesteps[step])

    def advance(self, step: int, output: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """The latent after ``step``, from the latent before it and the guided output, all (B, C, H, W)."""
        noise = {"generator": self._generators} if self._takes_generator else {}
        # Some schedulers draw from the global generator whatever they are given: lend it, seeded.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed + step)
            timestep = self._scheduler.timesteps[step]
            return self._scheduler.step(output, timestep, latent, return_dict=False, **noise)[0]

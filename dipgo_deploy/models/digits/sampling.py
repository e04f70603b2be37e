"""The plain sampler of the reference models: diffusers' DDIM, deterministic, with optional guidance."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler  # noqa: TID251 - the home of diffusers

from dipgo_deploy.models.digits.data import CLASSES, SIZE
from dipgo_deploy.models.digits.denoisers import Denoiser

__all__ = ["cycle_labels", "draw_noise", "sample"]


def cycle_labels(count: int) -> torch.Tensor:
    """Return labels (count,): 0, 1, ..., 9, 0, 1, ..."""
    return torch.arange(count) % CLASSES


def draw_noise(count: int, seed: int) -> torch.Tensor:
    """Return the starting noise (count, 1, 16, 16) of `seed`, on the CPU."""
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: DDIMScheduler,
    noise: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int = 50,
    guidance: float = 1.0,
    batch: int = 256,
) -> torch.Tensor:
    """Turn noise into images with deterministic DDIM.

    Args:
        denoiser: the model, in eval mode.
        scheduler: its schedule; its timesteps are set here.
        noise: (N, 1, 16, 16), standard normal.
        labels: (N,) in 0..9.
        steps: DDIM steps.
        guidance: classifier-free guidance scale; at 1.0 the unconditional branch is not run.
        batch: most images in one call of the model, each branch of guidance counted.

    Returns:
        Images (N, 1, 16, 16), unclamped; ink is about +1 and paper about -1.
    """
    size = batch if guidance == 1.0 else batch // 2
    scheduler.set_timesteps(steps)
    done = []
    for images, wanted in zip(noise.split(size), labels.split(size), strict=True):
        for timestep in scheduler.timesteps:
            predicted = _guided(denoiser, images, timestep, wanted, guidance)
            images = scheduler.step(predicted, timestep, images).prev_sample
        done.append(images)
    return torch.cat(done)


def _guided(
    denoiser: Denoiser, images: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, guidance: float
) -> torch.Tensor:
    if guidance == 1.0:
        return denoiser(images, timestep.expand(len(images)), labels)
    twice, both = torch.cat([images, images]), torch.cat([torch.full_like(labels, CLASSES), labels])
    null, wanted = denoiser(twice, timestep.expand(len(twice)), both).chunk(2)
    return null + guidance * (wanted - null)

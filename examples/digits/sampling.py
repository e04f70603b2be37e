"""The plain sampler of the reference models: diffusers' DDIM, deterministic, with optional guidance."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler

from dipgo_deploy.models.digits import CLASSES, SIZE
from examples.digits.denoisers import Denoiser

__all__ = ["cycle_labels", "draw_noise", "sample"]


def cycle_labels(count: int) -> torch.Tensor:
    """Labels (count,): 0, 1, ..., 9, 0, 1, ..."""
    return torch.arange(count) % CLASSES


def draw_noise(count: int, seed: int) -> torch.Tensor:
    """Initial noise (count, 1, 16, 16) of `seed`, on the CPU."""
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
        scheduler: its scheduler, whose timesteps are set here.
        noise: (N, 1, 16, 16), standard normal.
        labels: (N,) from 0 to 9.
        steps: DDIM steps.
        guidance: classifier-free guidance scale. At 1.0 there is no unconditional branch.
        batch: largest number of rows in one call of the model.

    Returns:
        Images (N, 1, 16, 16), not clamped. Ink is about +1 and paper about -1.
    """
    size = batch if guidance == 1.0 else batch // 2
    scheduler.set_timesteps(steps)
    finished = []
    for images, classes in zip(noise.split(size), labels.split(size), strict=True):
        for timestep in scheduler.timesteps:
            predicted = _guided(denoiser, images, timestep, classes, guidance)
            images = scheduler.step(predicted, timestep, images).prev_sample
        finished.append(images)
    return torch.cat(finished)


def _guided(
    denoiser: Denoiser, images: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, guidance: float
) -> torch.Tensor:
    if guidance == 1.0:
        return denoiser(images, timestep.expand(len(images)), labels)
    rows, row_labels = torch.cat([images, images]), torch.cat([torch.full_like(labels, CLASSES), labels])
    unconditional, conditional = denoiser(rows, timestep.expand(len(rows)), row_labels).chunk(2)
    return unconditional + guidance * (conditional - unconditional)

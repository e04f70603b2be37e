"""A sampler as coefficients, and the first noise of an image.

Deterministic samplers are linear in the latents and the model outputs so far. Let ``x_0`` be the first latent and
``e_i`` the (guided) output of call i. Then

1. ``x_0 = initial_scale * noise``,
2. call i feeds the network ``input_scales[i] * x_i``. A learned sampler may feed it a combination of its own instead,
   ``sum_j a_j x_(i-j) + sum_j b_j e_(i-1-j)`` with the coefficients of ``inputs[i]``,
3. ``x_(i+1) = sum_j a_j x_(i-j) + sum_j b_j e_(i-j)`` with the coefficients of ``updates[i]``.

A seed gives the same noise everywhere in the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LinearSampler", "OpaqueSampler", "SamplerReading", "Update", "noise_for"]


@dataclass(frozen=True)
class Update:
    """Coefficients of one combination, newest first: ``latents[j]`` of ``x_(i-j)``, ``outputs[j]`` of ``e_(i-j)``."""

    latents: tuple[float, ...]
    outputs: tuple[float, ...]


@dataclass(frozen=True)
class LinearSampler:
    """A linear sampler, with one entry of ``input_scales`` and ``updates`` per network call.

    ``inputs`` is empty, or has one entry per network call. Its outputs begin with ``e_(i-1)``.
    """

    initial_scale: float
    input_scales: tuple[float, ...]
    updates: tuple[Update, ...]
    inputs: tuple[Update, ...] = ()


@dataclass(frozen=True)
class OpaqueSampler:
    """A sampler that is not linear or not deterministic. Its ``step`` runs at run time, for the given ``reason``."""

    initial_scale: float
    input_scales: tuple[float, ...]
    reason: str


SamplerReading = LinearSampler | OpaqueSampler
"""The result of reading a sampler on a basis of latents and outputs."""


def noise_for(seeds: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise for a batch.

    Args:
        seeds: one seed per image. Row i depends only on ``seeds[i]``.
        shape: the latent of one image, ``(C, H, W)``.

    Returns:
        Noise of shape ``(B, C, H, W)`` in float32.
    """
    rows = [np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds]
    return np.stack(rows)

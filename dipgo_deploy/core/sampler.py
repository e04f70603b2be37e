"""What a sampler does between network calls, as coefficients.

Deterministic samplers are linear in the latents and the model outputs so far. With ``x_0`` the first latent and
``e_i`` the (guided) output of call i, the sampler sets ``x_(i+1) = sum_j a_j x_(i-j) + sum_j b_j e_(i-j)`` with the
coefficients of ``updates[i]``; call i feeds the network ``input_scales[i] * x_i``; ``x_0 = initial_scale * noise``.

First noise of images: what a seed means, wherever an image is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["LinearSampler", "OpaqueSampler", "SamplerReading", "Update", "noise_for"]


@dataclass(frozen=True)
class Update:
    """Coefficients of one step, newest first: ``latents[j]`` of ``x_(i-j)``, ``outputs[j]`` of ``e_(i-j)``."""

    latents: tuple[float, ...]
    outputs: tuple[float, ...]


@dataclass(frozen=True)
class LinearSampler:
    """A sampler read off as coefficients; one entry of ``input_scales`` and ``updates`` per network call."""

    initial_scale: float
    input_scales: tuple[float, ...]
    updates: tuple[Update, ...]


@dataclass(frozen=True)
class OpaqueSampler:
    """A sampler that is not linear or not deterministic (``reason`` says which): its own ``step`` runs at run time."""

    initial_scale: float
    input_scales: tuple[float, ...]
    reason: str


SamplerReading = LinearSampler | OpaqueSampler
"""What a sampler turns out to be, once it has been run on a basis."""


def noise_for(seeds: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise (B, C, H, W), float32; row i depends on ``seeds[i]`` alone."""
    rows = [np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds]
    return np.stack(rows)

"""What the diffusers pipeline of a family gives ``set_timesteps`` beside the number of steps.

FLUX's pipelines choose the noise levels themselves, evenly from 1 down; those of FLUX and Stable Diffusion 3 shift them
by the size of the image, where the scheduler's config asks for it (``calculate_shift`` in diffusers). A schedule for
another set of timesteps would be none for the pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["timestep_arguments"]

_FLUX = "FluxTransformer2DModel"
_MAX_SHIFT = {_FLUX: 1.15, "SD3Transformer2DModel": 1.16}
"""Classes whose pipelines shift by size, and the shift of the largest image unless the config says so."""

_PATCH = 2
"""Side of the square of latent pixels that is one token in both."""


def timestep_arguments(
    model_class: str, latent_shape: Sequence[int], scheduler: type, config: Mapping[str, Any], steps: int
) -> dict[str, Any]:
    """``sigmas`` and ``mu``, as far as the pipelines of ``model_class`` give them and ``scheduler`` takes them.

    ``config`` is the scheduler's, ``latent_shape`` (C, H, W).
    """
    if model_class not in _MAX_SHIFT:
        return {}
    taken = inspect.signature(scheduler.set_timesteps).parameters  # type: ignore[attr-defined]
    arguments: dict[str, Any] = {}
    if model_class == _FLUX and "sigmas" in taken and not config.get("use_flow_sigmas"):
        arguments["sigmas"] = np.linspace(1.0, 1 / steps, steps).tolist()
    if config.get("use_dynamic_shifting") and "mu" in taken:
        arguments["mu"] = _shift(model_class, latent_shape, config)
    return arguments


def _shift(model_class: str, latent_shape: Sequence[int], config: Mapping[str, Any]) -> float:
    """Linear in the number of image tokens."""
    tokens = (latent_shape[1] // _PATCH) * (latent_shape[2] // _PATCH)
    fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, greatest = config.get("base_shift", 0.5), config.get("max_shift", _MAX_SHIFT[model_class])
    slope = (greatest - least) / (most - fewest)
    return float(tokens * slope + (least - slope * fewest))

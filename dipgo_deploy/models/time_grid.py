"""DDIM on any time grid: exact coefficients for timesteps that diffusers' scheduler would not choose.

Take DDIM (eta 0) and a model that predicts noise. A schedule that holds the prediction over consecutive steps is then
DDIM with larger steps, on the timesteps at which the schedule computes. This is exact if the number of steps divides
the number of training timesteps. Otherwise diffusers rounds the timesteps, but not the steps between them.

Let s = sqrt(alpha_t) and n = sqrt(1 - alpha_t), with s' and n' at the next timestep. Then x' = s' x0 + n' e, where the
output o gives

    epsilon       x0 = (x - n o) / s    e = o
    v_prediction  x0 = s x - n o        e = s o + n x
    sample        x0 = o                e = (x - s o) / n

The alphas are diffusers' float32 values, and the arithmetic is float64. The last step ends where DDIM's last step ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.sampler import LinearSampler, Update
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.models.schedulers import scheduler_from_spec

__all__ = ["ddim_on_grid"]


def ddim_on_grid(timesteps: Sequence[float], scheduler_config: Mapping[str, Any]) -> tuple[SamplerSpec, LinearSampler]:
    """DDIM with one network call at each of ``timesteps``, for a model of this noise schedule.

    Args:
        timesteps: whole numbers in descending order.
        scheduler_config: the model's own scheduler config.

    Returns:
        The spec with these timesteps, and its coefficients. diffusers cannot rebuild a scheduler from the spec.

    Raises:
        InputError: the timesteps are not whole, not in descending order or outside the noise schedule. Or the model's
            config clips or thresholds the sample, has another prediction type or divides by zero at a timestep.
        UsageError: the model is a flow-matching model.
    """
    spec = sampler_spec("ddim", max(1, len(timesteps)), scheduler_config)
    scheduler: Any = scheduler_from_spec(spec)
    alphas = scheduler.alphas_cumprod.numpy().astype(np.float64)
    _check_grid(timesteps, len(alphas))
    _check_config(spec.config_dict)
    levels = [*(float(alphas[int(t)]) for t in timesteps), float(scheduler.final_alpha_cumprod)]
    with np.errstate(divide="ignore", invalid="ignore"):
        updates = tuple(_update(spec.config_dict["prediction_type"], *pair) for pair in pairwise(levels))
    if not np.isfinite([(*update.latents, *update.outputs) for update in updates]).all():
        raise InputError("DDIM divides by zero at one of these timesteps: choose a grid without it")
    reading = LinearSampler(float(scheduler.init_noise_sigma), (1.0,) * len(updates), updates)
    return replace(spec, timesteps=tuple(float(t) for t in timesteps)), reading


def _update(prediction: str, alpha: float, target: float) -> Update:
    """The step from noise level ``alpha`` to ``target``, both cumulative products."""
    signal, noise = np.sqrt([alpha, 1 - alpha])
    next_signal, next_noise = np.sqrt([target, 1 - target])
    if prediction == "epsilon":
        pair = next_signal / signal, next_noise - next_signal * noise / signal
    elif prediction == "v_prediction":
        pair = next_signal * signal + next_noise * noise, next_noise * signal - next_signal * noise
    else:
        pair = next_noise / noise, next_signal - next_noise * signal / noise
    return Update((float(pair[0]),), (float(pair[1]),))


def _check_grid(timesteps: Sequence[float], count: int) -> None:
    valid = all(float(t).is_integer() and 0 <= t < count for t in timesteps)
    if not timesteps or not valid or any(later >= earlier for earlier, later in pairwise(timesteps)):
        listed = ", ".join(f"{t:g}" for t in timesteps[:4]) + (", …" if len(timesteps) > 4 else "")
        raise InputError(
            f"timesteps must be whole numbers from {count - 1} down to 0 in descending order, got {listed or 'none'}"
        )


def _check_config(config: Mapping[str, Any]) -> None:
    for option in ("clip_sample", "thresholding"):
        if config.get(option):
            raise InputError(
                f"DDIM on a grid is linear, but this model's scheduler sets {option}: use its own timesteps"
            )
    if config["prediction_type"] not in ("epsilon", "v_prediction", "sample"):
        raise InputError(f"DDIM has no prediction_type {config['prediction_type']!r}: use its own timesteps")

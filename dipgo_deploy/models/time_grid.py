"""DDIM on any time grid: the exact coefficients, where diffusers' scheduler takes none but its own timesteps.

A schedule that holds the prediction over consecutive steps is, under DDIM (eta 0) and a model that predicts noise,
DDIM with larger steps on the timesteps at which it computes. (Exactly so where the number of steps divides that of
training timesteps. Elsewhere diffusers rounds the timesteps, but not the steps between them.) With s = sqrt(alpha_t),
n = sqrt(1 - alpha_t) and s', n' those of the next timestep, x' = s' x0 + n' e, where the output o gives

    epsilon       x0 = (x - n o) / s    e = o
    v_prediction  x0 = s x - n o        e = s o + n x
    sample        x0 = o                e = (x - s o) / n

The alphas are the float32 ones of diffusers' DDIM, the arithmetic on them is float64. The last step goes where DDIM's
last step goes.
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
from dipgo_deploy.models.samplers import sampler_spec, scheduler_from_spec

__all__ = ["ddim_on_grid"]


def ddim_on_grid(timesteps: Sequence[float], scheduler_config: Mapping[str, Any]) -> tuple[SamplerSpec, LinearSampler]:
    """DDIM with one network call at each of ``timesteps``, for a model of this noise schedule.

    Args:
        timesteps: whole numbers, falling.
        scheduler_config: the model's own scheduler config.

    Returns:
        The spec, whose timesteps are the given ones (diffusers could not rebuild a scheduler from it), and the reading.

    Raises:
        InputError: the timesteps are not whole, do not fall or lie outside the noise schedule; or the model's config
            clips or thresholds the sample, predicts something else or divides by zero there.
        UsageError: the model is one of flow matching.
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
    whole = all(float(t).is_integer() and 0 <= t < count for t in timesteps)
    if not timesteps or not whole or any(later >= earlier for earlier, later in pairwise(timesteps)):
        found = ", ".join(f"{t:g}" for t in timesteps[:4]) + (", …" if len(timesteps) > 4 else "")
        raise InputError(
            f"DDIM wants whole timesteps that fall, of 0 to {count - 1}, found {found or 'none'}: give such"
        )


def _check_config(config: Mapping[str, Any]) -> None:
    for option in ("clip_sample", "thresholding"):
        if config.get(option):
            raise InputError(
                f"DDIM on a grid is linear, but this model's scheduler sets {option}: use its own timesteps"
            )
    if config["prediction_type"] not in ("epsilon", "v_prediction", "sample"):
        raise InputError(f"DDIM knows no prediction_type {config['prediction_type']!r}: use its own timesteps")

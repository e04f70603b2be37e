"""What a configured sampler does between network calls, read off the diffusers scheduler itself.

1. Run the scheduler once on unit vectors: the first latent is basis vector 0, the output of call i basis vector i+1.
   Every latent of that run is then the row of its coefficients.
2. Express each row by the fewest latents and outputs before it (sampler_memory.py).
3. Check the result on random numbers of several magnitudes. Whatever clips, thresholds or draws noise fails here,
   and is left to its own ``step`` at run time.

The scheduler keeps its own float32 constants, for they are what it samples with; only the samples are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.sampler import LinearSampler, OpaqueSampler, SamplerReading, Update
from dipgo_deploy.models.sampler_memory import WINDOW, shortest_updates
from dipgo_deploy.models.samplers import SCHEDULER_ERRORS, scheduler_from_spec

__all__ = ["next_latent", "read_sampler"]

Floats = NDArray[np.float64]

_LINEAR = 1e-6
"""Largest error of an update on random numbers, in units of the largest value in it."""

_MAGNITUDES = np.array(list(product((0.1, 1.0, 30.0, 1000.0), repeat=2)))
"""Scales of the latents and outputs of the random runs. Clipping and thresholding show at one of them."""


def read_sampler(spec: SamplerSpec) -> SamplerReading:
    """Read a sampler's coefficients, or find out why it has none.

    Returns:
        LinearSampler, whose updates equal the scheduler's steps to rounding; or OpaqueSampler, whose ``reason``
        completes the sentence "the sampler ...": draws noise, thresholds its sample, clips its sample, is not linear
        in its last 4 latents and outputs.

    Raises:
        InputError: the scheduler cannot be built (see scheduler_from_spec), stops in the middle of its run, or
            gives values that are not finite.
    """
    unit = np.eye(spec.calls + 1)
    basis = _run(spec, unit[:1], unit[1:, None])
    updates = shortest_updates(basis.latents[:, 0])
    if updates is None or not _holds(spec, updates):
        return OpaqueSampler(basis.initial_scale, basis.input_scales, _reason(spec))
    return LinearSampler(basis.initial_scale, basis.input_scales, updates)


def next_latent(update: Update, latents: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Apply one update: ``latents`` x_0 to x_i and ``outputs`` e_0 to e_i, arrays of one shape, give x_(i+1)."""
    pairs = ((update.latents, latents), (update.outputs, outputs))
    return sum(c * value for known, values in pairs for c, value in zip(known, reversed(values), strict=False))


@dataclass(frozen=True)
class _Trajectory:
    """One run of a scheduler; ``latents`` (calls + 1, items, elements)."""

    initial_scale: float
    input_scales: tuple[float, ...]
    latents: Floats


class _Float64Stays(TorchFunctionMode):
    """Keeps float64 samples float64 where a scheduler casts them to float32 (Euler, flow Euler, DPM-Solver)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.to and args[0].dtype == torch.float64 and args[0].dim() == 4:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return func(*args, **(kwargs or {}))


def _run(spec: SamplerSpec, first: Floats, outputs: Floats, seed: int = 0) -> _Trajectory:
    """Feed ``outputs`` (calls, items, elements) to the scheduler, starting at ``first`` (items, elements)."""
    scheduler: Any = scheduler_from_spec(spec)
    scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
    # Elements lie along the width, for DPM-Solver cuts channels off where the model's variance is learned.
    latent, one = torch.from_numpy(first)[:, None, None], torch.ones(1, 1, 1, 1, dtype=torch.float64)
    latents, input_scales = [first], []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _Float64Stays():
        torch.default_generator.manual_seed(seed)
        for call, (timestep, output) in enumerate(zip(scheduler.timesteps, outputs, strict=True)):
            try:
                input_scales.append(float(scale(one, timestep)))
                latent = scheduler.step(torch.from_numpy(output)[:, None, None], timestep, latent, return_dict=False)[0]
            except SCHEDULER_ERRORS as error:
                raise InputError(_stopped(spec, call, str(error) or type(error).__name__)) from error
            latents.append(latent[:, 0, 0].numpy())
            if not np.isfinite(latents[-1]).all():
                raise InputError(_stopped(spec, call, "values that are not finite"))
    return _Trajectory(float(getattr(scheduler, "init_noise_sigma", 1.0)), tuple(input_scales), np.stack(latents))


def _stopped(spec: SamplerSpec, call: int, cause: str) -> str:
    return (
        f"{spec.class_name} must make {spec.calls} calls, but stops at call {call}, timestep {spec.timesteps[call]:g} "
        f"({cause}): choose another prediction_type, timestep_spacing, number of steps or sampler"
    )


def _random_run(spec: SamplerSpec, seed: int) -> tuple[Floats, Floats]:
    """Latents (calls + 1, items, elements) and outputs (calls, items, elements) at every pair of magnitudes.

    The numbers are the same for every ``seed``, which only reaches the noise that the scheduler draws itself.
    """
    numbers = np.random.default_rng(0).standard_normal((spec.calls + 1, len(_MAGNITUDES), 4))
    outputs = numbers[1:] * _MAGNITUDES[:, 1:]
    return _run(spec, numbers[0] * _MAGNITUDES[:, :1], outputs, seed).latents, outputs


def _holds(spec: SamplerSpec, updates: tuple[Update, ...]) -> bool:
    latents, outputs = _random_run(spec, seed=0)
    for call, update in enumerate(updates):
        found = next_latent(update, list(latents[: call + 1]), list(outputs[: call + 1]))
        size = np.abs(np.stack([latents[call], latents[call + 1], outputs[call]])).max(axis=(0, 2))
        if (np.abs(found - latents[call + 1]).max(axis=1) > _LINEAR * size).any():
            return False
    return True


def _reason(spec: SamplerSpec) -> str:
    if not np.array_equal(_random_run(spec, seed=0)[0], _random_run(spec, seed=1)[0]):
        return "draws noise"
    if spec.config_dict.get("thresholding"):
        return "thresholds its sample"
    if spec.config_dict.get("clip_sample"):
        return "clips its sample"
    return f"is not linear in its last {WINDOW} latents and outputs"

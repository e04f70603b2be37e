"""The coefficients of a configured sampler, read off the diffusers scheduler itself.

1. Run the scheduler once on unit vectors: the first latent is basis vector 0, the output of call i basis vector i+1.
   Every latent of that run is then the row of its coefficients.
2. Express each row by the fewest latents and outputs before it. Multistep schedulers keep sums of converted outputs. In
   terms of rows, these sums are combinations of a few earlier latents and outputs, and least squares finds them.
3. Check the result on random numbers of several magnitudes. A sampler that clips, thresholds or draws noise fails here,
   and its own ``step`` runs at run time.

A learned sampler's config holds its coefficients, so nothing is read off.

The scheduler keeps its own float32 constants, because it samples with them. Only the samples are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.sampler import LinearSampler, OpaqueSampler, SamplerReading, Update
from dipgo_deploy.models.schedulers import (
    LEARNED,
    SCHEDULER_ERRORS,
    cause,
    noise_arguments,
    scheduler_from_spec,
    step_arguments,
)

__all__ = ["next_latent", "read_sampler"]

Floats = NDArray[np.float64]

_WINDOW = 4
"""Largest number of latents, and of outputs, that one update may read."""

_EXACT = 1e-11
"""Share of a row's norm below which a residual or a term counts as rounding.

Residuals of true updates are 2e-14 at most. Those of wrong updates are 1e-9 and more in runs of up to 50 calls, and
1e-12 in runs of 1000 calls, where neighbouring steps are so similar that the wrong update is accurate enough.
"""

_LINEAR_TOLERANCE = 1e-6
"""Largest error of an update on random numbers, in units of the largest value in it."""

_MAGNITUDES = np.array(list(product((0.1, 1.0, 30.0, 1000.0), repeat=2)))
"""Scales of the latents and outputs of the random runs. At least one of them reveals clipping or thresholding."""


@lru_cache(maxsize=64)
def read_sampler(spec: SamplerSpec) -> SamplerReading:
    """Determine a sampler's coefficients, or the reason why it has none.

    Args:
        spec: the configured sampler.

    Returns:
        LinearSampler, whose updates equal the scheduler's steps to rounding, or OpaqueSampler. The ``reason`` of an
        OpaqueSampler completes the sentence "the sampler ...": draws noise, thresholds its sample, clips its sample,
        is not linear in its last 4 latents and outputs.

    Raises:
        InputError: the scheduler cannot be built (see scheduler_from_spec), fails during its run, or gives values that
            are not finite.
    """
    if spec.class_name == LEARNED:
        # Its steps read more than a basis can tell apart, and its config holds the coefficients.
        scheduler: Any = scheduler_from_spec(spec)
        sampler: LinearSampler = scheduler.sampler.linear
        return sampler
    unit = np.eye(spec.calls + 1)
    basis = _run(spec, unit[:1], unit[1:, None])
    updates = _shortest_updates(basis.latents[:, 0])
    if updates is None or not _is_linear(spec, updates):
        return OpaqueSampler(basis.initial_scale, basis.input_scales, _reason(spec))
    return LinearSampler(basis.initial_scale, basis.input_scales, updates)


def next_latent(update: Update, latents: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Apply one update.

    Args:
        update: the coefficients of the step.
        latents: x_0 to x_i, arrays of one shape.
        outputs: e_0 to e_i, of the same shape.

    Returns:
        x_(i+1).
    """
    pairs = ((update.latents, latents), (update.outputs, outputs))
    return sum(
        c * value for coefficients, values in pairs for c, value in zip(coefficients, reversed(values), strict=False)
    )


@dataclass(frozen=True)
class _Trajectory:
    """One run of a scheduler. ``latents`` has the shape (calls + 1, items, elements)."""

    initial_scale: float
    input_scales: tuple[float, ...]
    latents: Floats


class _KeepFloat64(TorchFunctionMode):
    """Keeps float64 samples in float64, although a scheduler casts them to float32 (Euler, flow Euler, DPM-Solver)."""

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
    options = {"return_dict": False, **step_arguments(spec), **noise_arguments(scheduler, seed, len(first))}
    # Elements lie along the width, because DPM-Solver drops half of the channels if the model learns its variance.
    latent, unit = torch.from_numpy(first)[:, None, None], torch.ones(1, 1, 1, 1, dtype=torch.float64)
    latents, input_scales = [first], []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _KeepFloat64():
        torch.default_generator.manual_seed(seed)
        for call, (timestep, output) in enumerate(zip(scheduler.timesteps, outputs, strict=True)):
            try:
                input_scales.append(float(scale(unit, timestep)))
                latent = scheduler.step(torch.from_numpy(output)[:, None, None], timestep, latent, **options)[0]
            except SCHEDULER_ERRORS as error:
                raise InputError(_stopped(spec, call, cause(error))) from error
            if not _is_latent(latent, first.shape):
                raise InputError(_stopped(spec, call, "values that are no latent"))
            latents.append(latent[:, 0, 0].numpy())
            if not np.isfinite(latents[-1]).all():
                raise InputError(_stopped(spec, call, "values that are not finite"))
    return _Trajectory(float(getattr(scheduler, "init_noise_sigma", 1.0)), tuple(input_scales), np.stack(latents))


def _is_latent(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether a step gives numbers for a latent. The schedulers of discrete models give tokens."""
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return is_float and tuple(value.shape) == (shape[0], 1, 1, shape[1])


def _stopped(spec: SamplerSpec, call: int, why: str) -> str:
    if str(spec.config_dict.get("variance_type")).startswith("learned"):
        why += ", the variance that the network learns is not given to the sampler"
    return (
        f"{spec.class_name} must make {spec.calls} calls, but stops at call {call}, timestep {spec.timesteps[call]:g} "
        f"({why}): choose another prediction_type, timestep_spacing, number of steps or sampler"
    )


def _random_run(spec: SamplerSpec, seed: int) -> tuple[Floats, Floats]:
    """Latents (calls + 1, items, elements) and outputs (calls, items, elements) at every pair of magnitudes.

    The numbers do not depend on ``seed``, which only seeds the noise that the scheduler draws itself.
    """
    numbers = np.random.default_rng(0).standard_normal((spec.calls + 1, len(_MAGNITUDES), 4))
    outputs = numbers[1:] * _MAGNITUDES[:, 1:]
    return _run(spec, numbers[0] * _MAGNITUDES[:, :1], outputs, seed).latents, outputs


def _is_linear(spec: SamplerSpec, updates: tuple[Update, ...]) -> bool:
    latents, outputs = _random_run(spec, seed=0)
    for call, update in enumerate(updates):
        predicted = next_latent(update, list(latents[: call + 1]), list(outputs[: call + 1]))
        size = np.abs(np.stack([latents[call], latents[call + 1], outputs[call]])).max(axis=(0, 2))
        if (np.abs(predicted - latents[call + 1]).max(axis=1) > _LINEAR_TOLERANCE * size).any():
            return False
    return True


def _reason(spec: SamplerSpec) -> str:
    if not np.array_equal(_random_run(spec, seed=0)[0], _random_run(spec, seed=1)[0]):
        return "draws noise"
    if spec.config_dict.get("thresholding"):
        return "thresholds its sample"
    if spec.config_dict.get("clip_sample"):
        return "clips its sample"
    return f"is not linear in its last {_WINDOW} latents and outputs"


def _shortest_updates(rows: Floats) -> tuple[Update, ...] | None:
    """Find the update that makes each row from those before it.

    Args:
        rows: (calls + 1, calls + 1), the coefficients of latents 0 to ``calls``.

    Returns:
        One update per call, or None if a row needs more than the newest _WINDOW latents and outputs.
    """
    updates = []
    for call in range(len(rows) - 1):
        update = _shortest(rows, call)
        if update is None:
            return None
        updates.append(update)
    return tuple(updates)


def _shortest(rows: Floats, call: int) -> Update | None:
    """The update with the fewest terms. Ties go to the shortest look-back, then to the fewest latents."""
    count = min(_WINDOW, call + 1)
    small, norms = _reduced(rows, call, count)
    candidates: list[tuple[tuple[int, int, int], Update]] = []
    for n_latents, n_outputs in product(range(1, count + 1), repeat=2):
        used = np.r_[0:n_latents, count : count + n_outputs]
        shares = np.linalg.lstsq(small[:, used], small[:, -1], rcond=None)[0]
        if np.linalg.norm(small[:, used] @ shares - small[:, -1]) > _EXACT:
            continue
        shares[np.abs(shares) <= _EXACT] = 0.0
        terms = int(np.count_nonzero(shares))
        values = shares * norms[-1] / norms[used]
        update = Update(_trimmed(values[:n_latents]), _trimmed(values[n_latents:]))
        candidates.append(((terms, max(n_latents, n_outputs), n_latents), update))
        if terms <= 2:
            break
    return min(candidates, key=lambda pair: pair[0])[1] if candidates else None


def _reduced(rows: Floats, call: int, count: int) -> tuple[Floats, Floats]:
    """Columns for ``count`` latents, ``count`` outputs (newest first) and the target row, normalized, and their norms.

    A QR decomposition keeps every distance and leaves nine coordinates of up to a thousand.
    """
    newest = call - np.arange(count)
    outputs = np.zeros((count, len(rows)))
    outputs[np.arange(count), newest + 1] = 1.0
    columns = np.concatenate([rows[newest], outputs, rows[call + 1 : call + 2]])
    norms = np.linalg.norm(columns, axis=1)
    norms[norms == 0.0] = 1.0
    return np.asarray(np.linalg.qr((columns / norms[:, None]).T, mode="r")), norms


def _trimmed(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in np.trim_zeros(values, "b"))

"""What a user should know of a sampler: why it does not fold into a program, and what it was learned for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.sampler import LinearSampler, OpaqueSampler
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.models.schedulers import LEARNED, own_config, scheduler_type

__all__ = ["guidance_note", "sampler_note"]

_SAME_SCALE = 1e-6
"""Guidance scales that differ by less are the same."""

_LINEAR_VALUES: Mapping[str, Any] = {
    "clip_sample": False,
    "thresholding": False,
    "skip_prk_steps": True,
    "stochastic_sampling": False,
    "eta": 0.0,
    "algorithm_type": "dpmsolver++",
}
"""Options whose other values clip, threshold, or draw noise in some scheduler."""


def sampler_note(spec: SamplerSpec) -> str:
    """One line for the user of a sampler whose own ``step`` runs between the network calls.

    Args:
        spec: the sampler of a contract.

    Returns:
        The reason and a remedy that was tried, or "" for a linear sampler.
    """
    reading = read_sampler(spec)
    if not isinstance(reading, OpaqueSampler):
        return ""
    options = _linear_options(spec)
    remedy = " ".join(f"--sampler-option {key}={str(value).lower()}" for key, value in options.items())
    advice = f"{remedy} folds it, and changes the images" if remedy else "another --sampler may fold"
    reason = f"{spec.class_name} {reading.reason}"
    return f"note: {reason}, so its own step runs after each of its {spec.calls} calls: {advice}"


def guidance_note(spec: SamplerSpec, guidance_scale: float) -> str:
    """A warning where a guidance scale is not one that a sampler was learned for, "" elsewhere."""
    made_for = spec.config_dict.get("made_for") if spec.class_name == LEARNED else None
    learned_for = made_for.get("guidance_range") if isinstance(made_for, dict) else None
    if not (isinstance(learned_for, list) and learned_for and all(isinstance(s, int | float) for s in learned_for)):
        return ""
    if min(learned_for) - _SAME_SCALE <= guidance_scale <= max(learned_for) + _SAME_SCALE:
        return ""
    low, high = (f"{scale:g}" for scale in (min(learned_for), max(learned_for)))
    return (
        f"the sampler was learned for guidance scale {low if low == high else f'{low} to {high}'}, the run has "
        f"{guidance_scale:g}: expect worse images, or search with --guidance-scale {guidance_scale:g}"
    )


def _linear_options(spec: SamplerSpec) -> dict[str, Any]:
    """The fewest options that make a sampler linear. Empty if there are none."""
    own = own_config(spec)
    arguments = {key: value for key, value in spec.config_dict.items() if key not in own}
    for choice in _choices(spec):
        try:
            changed = sampler_spec(None, spec.steps, own, choice, arguments)
            if isinstance(read_sampler(changed), LinearSampler):
                return choice
        except DipgoError:
            continue
    return {}


def _choices(spec: SamplerSpec) -> Iterator[dict[str, Any]]:
    """Every option alone, then all of them."""
    step = inspect.signature(scheduler_type(spec.class_name).step).parameters
    config = {"eta": step["eta"].default, **spec.config_dict} if "eta" in step else spec.config_dict
    options = {key: value for key, value in _LINEAR_VALUES.items() if key in config and config[key] != value}
    yield from ({key: value} for key, value in options.items())
    if len(options) > 1:
        yield options

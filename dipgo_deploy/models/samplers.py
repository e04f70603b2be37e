"""Samplers: the scheduler that a model brings along, or a diffusers scheduler by name, configured for the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.schedulers import (
    SCHEDULER_ERRORS,
    call_argument_names,
    cause,
    check_step,
    is_flow_scheduler,
    record_scheduler,
    scheduler_options,
    scheduler_type,
)
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

if TYPE_CHECKING:
    from diffusers import SchedulerMixin  # noqa: TID251 - the home of diffusers

__all__ = ["SAMPLERS", "SamplerPreset", "sampler_spec", "scheduler_class"]


@dataclass(frozen=True)
class SamplerPreset:
    """A diffusers scheduler class and the options that make it the sampler of that name."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)


_KINDS: Mapping[tuple[type, ...], str] = {(bool,): "true or false", (int, float): "a number", (str,): "a word"}
"""Types of an option's default, and the values that the option takes in words."""

_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}

SAMPLERS: Mapping[str, SamplerPreset] = {
    "ddim": SamplerPreset("DDIMScheduler"),
    "ddpm": SamplerPreset("DDPMScheduler"),
    "deis": SamplerPreset(
        "DEISMultistepScheduler", {"algorithm_type": "deis", "solver_order": 2, "solver_type": "logrho"}
    ),
    "dpmpp-2m": SamplerPreset("DPMSolverMultistepScheduler", _DPMPP_2M),
    "dpmpp-2m-karras": SamplerPreset("DPMSolverMultistepScheduler", {**_DPMPP_2M, "use_karras_sigmas": True}),
    "euler": SamplerPreset("EulerDiscreteScheduler"),
    "euler-a": SamplerPreset("EulerAncestralDiscreteScheduler"),
    "flow-euler": SamplerPreset("FlowMatchEulerDiscreteScheduler"),
    "heun": SamplerPreset("HeunDiscreteScheduler"),
    "lms": SamplerPreset("LMSDiscreteScheduler"),
    "pndm": SamplerPreset("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": SamplerPreset("UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
}
"""Samplers by their command-line name. ``pndm`` is its PLMS half, as Stable Diffusion runs it."""


def sampler_spec(
    sampler: str | SchedulerMixin | None,
    steps: int,
    base_config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> SamplerSpec:
    """Configure a sampler for a model and record it.

    Args:
        sampler: None takes class and every option of base_config, which is the model's own scheduler. A name of
            SAMPLERS takes the class and the options of that name, and all other options from base_config. A diffusers
            scheduler gives class and config.
        steps: the argument of ``set_timesteps``, 1 to ``num_train_timesteps``.
        base_config: the model's own scheduler config (betas, prediction type, spacing). Options that the class does not
            have are dropped. Default for a scheduler object: its own config.
        overrides: options that override base_config and the name's preset, and arguments of the scheduler's calls.
        arguments: ``mu``, ``sigmas`` and ``eta`` as the model's pipeline passes them. The overrides win.

    Returns:
        The spec, with one timestep per network call.

    Raises:
        UsageError: unknown name, steps out of range, or an option that the scheduler lacks or refuses.
        InputError: a base_config that the scheduler refuses by itself or that names no class, dynamic shifting without
            ``mu``, or a scheduler that needs more than a program can give.
        MissingError: a package that the scheduler needs is not installed.
    """
    preset, base = _preset(sampler, base_config)
    cls, options = scheduler_type(preset.class_name), {**preset.config, **(overrides or {})}
    check_step(cls)
    _check_options(cls, options)
    scheduler = _configured(cls, base, options, bool(overrides))
    _check_family(base, scheduler)
    _check_steps(steps, scheduler)
    chosen = {key: options[key] for key in call_argument_names(cls) if options.get(key) is not None}
    return record_scheduler(scheduler, steps, {**(arguments or {}), **chosen})


def scheduler_class(sampler: str | None, base_config: Mapping[str, Any]) -> Any:
    """The diffusers class behind a name of SAMPLERS, or the model's own for None. Raises as sampler_spec does."""
    return scheduler_type(_preset(sampler, base_config)[0].class_name)


def _preset(
    sampler: str | SchedulerMixin | None, base_config: Mapping[str, Any] | None
) -> tuple[SamplerPreset, dict[str, Any]]:
    """Class and options of a sampler, and the config that gives the other options."""
    base = dict(base_config or {})
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise UsageError(f"there is no sampler '{sampler}': choose one of {', '.join(SAMPLERS)}")
        return SAMPLERS[sampler], base
    if sampler is not None and base_config is not None:
        return SamplerPreset(type(sampler).__name__), base
    own, name = (base, base.get("_class_name")) if sampler is None else (sampler.config, type(sampler).__name__)
    if not isinstance(name, str):
        raise InputError(f"the model has no scheduler of its own: choose a sampler of {', '.join(SAMPLERS)}")
    # Every option was chosen: without this list, class defaults would override the options in it.
    return SamplerPreset(name), {key: value for key, value in own.items() if key != "_use_default_values"}


def _configured(cls: Any, base: Mapping[str, Any], options: Mapping[str, Any], changed: bool) -> Any:
    """A scheduler with the options of ``base``, overridden by ``options``."""
    # In diffusers, class defaults override the options listed in _use_default_values.
    kept = {k: v for k, v in base.items() if k in scheduler_options(cls) or k == "_use_default_values"}
    try:
        with suppress_diffusers_logging():
            return cls.from_config(kept, **{k: v for k, v in options.items() if k in scheduler_options(cls)})
    except (*SCHEDULER_ERRORS, ImportError) as error:
        refusal = f"{cls.__name__} refuses this config ({cause(error)})"
        if changed:
            raise UsageError(f"{refusal}: change the options") from error
        raise InputError(f"{refusal}: fix the model's scheduler_config.json, or choose another sampler") from error


def _check_options(cls: type, options: Mapping[str, Any]) -> None:
    defaults = scheduler_options(cls)
    if unknown := sorted(options.keys() - defaults.keys() - set(call_argument_names(cls))):
        known = ", ".join(sorted(defaults))
        raise UsageError(f"{cls.__name__} has no option '{unknown[0]}': choose from {known}")
    for name, value in options.items():
        kind = next((kind for kind in _KINDS if type(defaults.get(name)) in kind), None)
        # diffusers checks no types. The string "no" would switch an option on.
        if kind is not None and type(value) not in kind and value is not None:
            raise UsageError(f"option '{name}' of {cls.__name__} is {_KINDS[kind]}, got {value!r}: change it")


def _check_family(base: Mapping[str, Any], scheduler: Any) -> None:
    name, models_own = type(scheduler).__name__, base.get("_class_name")
    if models_own in (None, name) or _family(name, scheduler.config) == _family(models_own, base):
        return
    raise UsageError(
        f"{name} is configured for {_family(name, scheduler.config)}, but the model's own {models_own} is for "
        f"{_family(models_own, base)}: choose another sampler, or override prediction_type and use_flow_sigmas"
    )


def _family(class_name: str, config: Mapping[str, Any]) -> str:
    return "flow-matching models" if is_flow_scheduler(class_name, config) else "noise-schedule models"


def _check_steps(steps: int, scheduler: Any) -> None:
    limit = scheduler.config.get("num_train_timesteps", 1000)
    if not 1 <= steps <= limit:
        raise UsageError(f"the number of sampler steps must lie between 1 and {limit}, got {steps}")

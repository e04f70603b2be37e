"""Samplers by name: which diffusers scheduler a name stands for, and how it is configured for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError, UsageError, first_line
from dipgo_deploy.models.schedulers import (
    SCHEDULER_ERRORS,
    TIMESTEP_ARGUMENTS,
    record_scheduler,
    scheduler_options,
    scheduler_type,
)

if TYPE_CHECKING:
    from diffusers import SchedulerMixin  # noqa: TID251 - the home of diffusers

__all__ = ["SAMPLERS", "SamplerPreset", "default_sampler", "sampler_spec", "scheduler_class"]


@dataclass(frozen=True)
class SamplerPreset:
    """A diffusers scheduler class and the options that make it the sampler of that name."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)


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

_DEFAULT = "ddim"


def default_sampler(config: Mapping[str, Any]) -> str:
    """The name in SAMPLERS that matches a model's own scheduler config best, or ``ddim`` if no class matches."""
    names = [name for name, preset in SAMPLERS.items() if preset.class_name == config.get("_class_name")]

    def likeness(name: str) -> int:
        return sum(1 if config.get(key) == value else -1 for key, value in SAMPLERS[name].config.items())

    return max(names, key=likeness, default=_DEFAULT)


def sampler_spec(
    name_or_scheduler: str | SchedulerMixin,
    steps: int,
    base_config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SamplerSpec:
    """Configure a sampler for a model and record it.

    Args:
        name_or_scheduler: a name of SAMPLERS, or a diffusers scheduler, which gives class and config.
        steps: the argument of ``set_timesteps``, 1 to ``num_train_timesteps``.
        base_config: the model's own scheduler config (betas, prediction type, spacing). Options that the class does not
            have are dropped. Default for a scheduler object: its own config.
        overrides: options that override base_config and the name's preset, and also ``mu`` and ``sigmas``.

    Returns:
        The spec, with one timestep per network call.

    Raises:
        UsageError: unknown name, steps out of range, or an option that the scheduler lacks or refuses.
        InputError: a base_config that the scheduler refuses by itself, or dynamic shifting without ``mu``.
        MissingError: a package that the scheduler needs is not installed.
    """
    preset, base = _preset(name_or_scheduler, base_config)
    cls, options = scheduler_type(preset.class_name), {**preset.config, **(overrides or {})}
    _check_options(cls, options)
    # In diffusers, class defaults override the options listed in _use_default_values.
    kept = {k: v for k, v in base.items() if k in scheduler_options(cls) or k == "_use_default_values"}
    try:
        scheduler = cls.from_config(kept, **{k: v for k, v in options.items() if k not in TIMESTEP_ARGUMENTS})
    except (*SCHEDULER_ERRORS, ImportError) as error:
        refusal = f"{cls.__name__} refuses this config ({first_line(error)})"
        if overrides:
            raise UsageError(f"{refusal}: change the options") from error
        raise InputError(f"{refusal}: fix the model's scheduler_config.json, or choose another sampler") from error
    _check_family(base, scheduler)
    _check_steps(steps, scheduler)
    return record_scheduler(
        scheduler, steps, {key: options[key] for key in TIMESTEP_ARGUMENTS if options.get(key) is not None}
    )


def scheduler_class(name: str) -> Any:
    """The diffusers class behind a name of SAMPLERS. Raises UsageError for another name."""
    return scheduler_type(_preset(name, None)[0].class_name)


def _preset(
    name_or_scheduler: str | SchedulerMixin, base_config: Mapping[str, Any] | None
) -> tuple[SamplerPreset, dict[str, Any]]:
    if not isinstance(name_or_scheduler, str):
        own = name_or_scheduler.config if base_config is None else base_config
        return SamplerPreset(type(name_or_scheduler).__name__), dict(own)
    if name_or_scheduler not in SAMPLERS:
        raise UsageError(f"there is no sampler '{name_or_scheduler}': choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name_or_scheduler], dict(base_config or {})


def _check_options(cls: type, options: Mapping[str, Any]) -> None:
    if unknown := sorted(options.keys() - scheduler_options(cls).keys() - set(TIMESTEP_ARGUMENTS)):
        known = ", ".join(sorted(scheduler_options(cls)))
        raise UsageError(f"{cls.__name__} has no option '{unknown[0]}': choose from {known}")


def _check_family(base: Mapping[str, Any], scheduler: Any) -> None:
    name, models_own = type(scheduler).__name__, base.get("_class_name")
    if models_own is None or _family(name, scheduler.config) == _family(models_own, base):
        return
    raise UsageError(
        f"{name} is configured for {_family(name, scheduler.config)}, but the model's own {models_own} is for "
        f"{_family(models_own, base)}: choose another sampler, or override prediction_type and use_flow_sigmas"
    )


def _family(class_name: str, config: Mapping[str, Any]) -> str:
    is_flow = "FlowMatch" in class_name or config.get("use_flow_sigmas")
    return "flow-matching models" if is_flow else "noise-schedule models"


def _check_steps(steps: int, scheduler: Any) -> None:
    limit = scheduler.config.get("num_train_timesteps", 1000)
    if not 1 <= steps <= limit:
        raise UsageError(f"the number of sampler steps must lie between 1 and {limit}, got {steps}")

"""Samplers by name: which diffusers scheduler a name stands for, and how a configured one is recorded and rebuilt.

A spec holds the scheduler's whole config, defaults included, so that it means the same when diffusers' defaults
change. Two arguments of ``set_timesteps`` shape the timesteps without being config: ``mu`` (dynamic shifting) and
``sigmas`` (the custom noise levels of some flow pipelines). They are recorded beside the config, under their own names.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError, MissingError, UsageError, first_line

if TYPE_CHECKING:
    from diffusers import SchedulerMixin  # noqa: TID251 - the home of diffusers

__all__ = [
    "SAMPLERS",
    "SCHEDULER_ERRORS",
    "SamplerPreset",
    "is_recorded_as",
    "sampler_spec",
    "scheduler_class",
    "scheduler_from_spec",
    "usual_sampler",
]


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

_USUAL = "ddim"


def usual_sampler(config: Mapping[str, Any]) -> str:
    """The name in SAMPLERS of a model's own scheduler config, the variant most alike; ``ddim`` where none fits."""
    own = [name for name, preset in SAMPLERS.items() if preset.class_name == config.get("_class_name")]

    def alike(name: str) -> int:
        return sum(1 if config.get(key) == value else -1 for key, value in SAMPLERS[name].config.items())

    return max(own, key=alike, default=_USUAL)


_TIMESTEP_ARGUMENTS = ("mu", "sigmas")

SCHEDULER_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What diffusers raises on a config that a scheduler cannot work with (NotImplementedError is a RuntimeError)."""


def sampler_spec(
    name_or_scheduler: str | SchedulerMixin,
    steps: int,
    base_config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SamplerSpec:
    """Configure a sampler for a model and record it, with one timestep per network call.

    Args:
        name_or_scheduler: a name of SAMPLERS, or a diffusers scheduler, which gives class and config.
        steps: what ``set_timesteps`` is called with, 1 to ``num_train_timesteps``.
        base_config: the model's own scheduler config (betas, prediction type, spacing); options that the class does
            not have are dropped. For a scheduler object the default is its own config.
        overrides: options that win over base_config and the name's preset; also ``mu`` and ``sigmas``.

    Raises:
        UsageError: unknown name, steps out of range, or an option that the scheduler lacks or refuses.
        InputError: a base_config that the scheduler refuses by itself, or dynamic shifting without ``mu``.
        MissingError: a package that the scheduler needs is not installed.
    """
    preset, base = _preset(name_or_scheduler, base_config)
    cls, wanted = _scheduler_class(preset.class_name), {**preset.config, **(overrides or {})}
    _check_options(cls, wanted)
    kept = {key: value for key, value in base.items() if key in _options(cls) or key == "_use_default_values"}
    try:
        scheduler = cls.from_config(kept, **{k: v for k, v in wanted.items() if k not in _TIMESTEP_ARGUMENTS})
    except (*SCHEDULER_ERRORS, ImportError) as error:
        refusal = f"{cls.__name__} refuses this config ({first_line(error)})"
        if overrides:
            raise UsageError(f"{refusal}: change the options") from error
        raise InputError(f"{refusal}: mend the model's scheduler_config.json, or choose another sampler") from error
    _check_family(base, scheduler)
    _check_steps(steps, scheduler)
    arguments = {key: _json_value(key, wanted[key]) for key in _TIMESTEP_ARGUMENTS if wanted.get(key) is not None}
    _set_timesteps(scheduler, steps, arguments)
    text = json.dumps({**_recorded(scheduler), **arguments}, sort_keys=True, allow_nan=False)
    return SamplerSpec(cls.__name__, text, steps, _timesteps(scheduler))


def scheduler_from_spec(spec: SamplerSpec) -> SchedulerMixin:
    """Build the diffusers scheduler of ``spec``, its timesteps set, ready for its first call.

    Raises:
        InputError: the class is no diffusers scheduler, it does not take the recorded config, or this version of
            diffusers derives other timesteps from it.
        MissingError: a package that the scheduler needs is not installed.
    """
    cls, config = _scheduler_class(spec.class_name), spec.config_dict
    arguments = {key: config.pop(key) for key in _TIMESTEP_ARGUMENTS if key in config}
    if unknown := sorted(config.keys() - _options(cls).keys()):
        raise InputError(f"{cls.__name__} has no option '{unknown[0]}': install the diffusers that recorded it")
    try:
        scheduler = cls.from_config(config)
    except (*SCHEDULER_ERRORS, ImportError) as error:
        raise InputError(f"{cls.__name__} refuses its config ({first_line(error)}): record it anew") from error
    _set_timesteps(scheduler, spec.steps, arguments)
    if (found := _timesteps(scheduler)) != spec.timesteps:
        raise InputError(
            f"{cls.__name__} was recorded with {_brief(spec.timesteps)}, but here its config gives {_brief(found)}: "
            "install the diffusers that recorded it, or record the sampler anew"
        )
    return scheduler


def is_recorded_as(scheduler: SchedulerMixin, spec: SamplerSpec) -> bool:
    """Whether a scheduler has the class and config of ``spec``; how many steps it is set to does not count."""
    config = {key: value for key, value in spec.config_dict.items() if key not in _TIMESTEP_ARGUMENTS}
    return type(scheduler).__name__ == spec.class_name and _recorded(scheduler) == config


def scheduler_class(name: str) -> Any:
    """The diffusers class behind a name of SAMPLERS; UsageError for another name."""
    return _scheduler_class(_preset(name, None)[0].class_name)


def _preset(
    name_or_scheduler: str | SchedulerMixin, base_config: Mapping[str, Any] | None
) -> tuple[SamplerPreset, dict[str, Any]]:
    if not isinstance(name_or_scheduler, str):
        own = name_or_scheduler.config if base_config is None else base_config
        return SamplerPreset(type(name_or_scheduler).__name__), dict(own)
    if name_or_scheduler not in SAMPLERS:
        raise UsageError(f"there is no sampler '{name_or_scheduler}': choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name_or_scheduler], dict(base_config or {})


def _scheduler_class(name: str) -> Any:
    import diffusers  # noqa: TID251 - the home of diffusers

    cls = getattr(diffusers, name, None)
    if isinstance(cls, type) and hasattr(cls, "_backends"):
        raise MissingError(f"{name} needs the packages {', '.join(cls._backends)}: install them")
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise InputError(f"a diffusers scheduler is wanted, found '{name}': name a class such as DDIMScheduler")
    return cls


def _options(cls: type) -> dict[str, Any]:
    """Every option of the scheduler with its default."""
    parameters = inspect.signature(cls).parameters.values()
    return {option.name: option.default for option in parameters if option.kind is not option.VAR_KEYWORD}


def _recorded(scheduler: Any) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, default in _options(type(scheduler)).items():
        value = scheduler.config.get(key, default)
        # DPM-Solver's lambda_min_clipped is -inf unless set, which JSON lacks.
        if not (isinstance(value, float) and math.isinf(value) and value == default):
            config[key] = _json_value(key, value)
    return config


def _check_options(cls: type, wanted: Mapping[str, Any]) -> None:
    if unknown := sorted(wanted.keys() - _options(cls).keys() - set(_TIMESTEP_ARGUMENTS)):
        known = ", ".join(sorted(_options(cls)))
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
    return "flow-matching models" if is_flow else "models of a noised image"


def _check_steps(steps: int, scheduler: Any) -> None:
    most = scheduler.config.get("num_train_timesteps", 1000)
    if not 1 <= steps <= most:
        raise UsageError(f"{steps} sampler steps make no sense: the model was trained on 1 to {most}")


def _set_timesteps(scheduler: Any, steps: int, arguments: Mapping[str, Any]) -> None:
    name = type(scheduler).__name__
    if scheduler.config.get("use_dynamic_shifting") and "mu" not in arguments:
        raise InputError(
            f"{name} shifts its timesteps by the image size and needs a number for it, found none: give 'mu' as an "
            "option of the sampler, or set use_dynamic_shifting to false"
        )
    count = {} if "sigmas" in arguments else {"num_inference_steps": steps}
    try:
        scheduler.set_timesteps(**count, **arguments)
    except SCHEDULER_ERRORS as error:
        raise UsageError(f"{name} cannot make {steps} steps ({first_line(error)}): change the options") from error
    if "sigmas" in arguments and scheduler.num_inference_steps != steps:
        raise UsageError(f"{steps} steps are wanted, but 'sigmas' give {scheduler.num_inference_steps}: give as many")
    if steps > 1 and len(set(_timesteps(scheduler))) == 1:
        # DPM-Solver, DEIS and UniPC do this with "leading" spacing and num_train_timesteps steps.
        raise UsageError(f"{steps} steps of {name} all have one timestep: choose fewer, or another timestep_spacing")
    if hasattr(scheduler, "set_begin_index"):
        # Left alone, a scheduler whose first timestep value occurs twice starts at the second one.
        scheduler.set_begin_index(0)


def _timesteps(scheduler: Any) -> tuple[float, ...]:
    return tuple(float(timestep) for timestep in scheduler.timesteps)


def _json_value(key: str, value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"option '{key}' holds {value!r}, which JSON cannot record: leave it out") from error


def _brief(timesteps: tuple[float, ...]) -> str:
    return f"{len(timesteps)} timesteps {timesteps[0]:g} to {timesteps[-1]:g}" if timesteps else "no timesteps"

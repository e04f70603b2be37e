"""diffusers schedulers: how a configured scheduler is recorded in a SamplerSpec and rebuilt from it.

A spec holds the scheduler's whole config, defaults included, so that its meaning does not change with diffusers'
defaults. Two arguments of ``set_timesteps`` change the timesteps without being config: ``mu`` (dynamic shifting) and
``sigmas`` (the custom noise levels of some flow pipelines). They are recorded in the config under their own names.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError, MissingError, UsageError, first_line

if TYPE_CHECKING:
    from diffusers import SchedulerMixin  # noqa: TID251 - the home of diffusers

__all__ = [
    "SCHEDULER_ERRORS",
    "TIMESTEP_ARGUMENTS",
    "is_recorded_as",
    "record_scheduler",
    "scheduler_from_spec",
    "scheduler_options",
    "scheduler_type",
]

TIMESTEP_ARGUMENTS = ("mu", "sigmas")
"""Arguments of ``set_timesteps`` that are recorded with the config."""

SCHEDULER_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Exceptions of diffusers for a config that a scheduler does not support (NotImplementedError is a RuntimeError)."""


def record_scheduler(scheduler: SchedulerMixin, steps: int, arguments: Mapping[str, Any]) -> SamplerSpec:
    """Set the timesteps of a scheduler and record it.

    Args:
        scheduler: the configured scheduler.
        steps: the argument of ``set_timesteps``.
        arguments: ``mu`` and ``sigmas``, if the scheduler needs them.

    Returns:
        The spec, with one timestep per network call.

    Raises:
        UsageError: the scheduler cannot make that many steps, or an argument cannot be recorded.
        InputError: dynamic shifting without ``mu``.
    """
    arguments = {key: _json_value(key, value) for key, value in arguments.items()}
    _set_timesteps(scheduler, steps, arguments)
    config = json.dumps({**_recorded_config(scheduler), **arguments}, sort_keys=True, allow_nan=False)
    return SamplerSpec(type(scheduler).__name__, config, steps, _timesteps(scheduler))


def scheduler_from_spec(spec: SamplerSpec) -> SchedulerMixin:
    """Build the diffusers scheduler of ``spec``, with its timesteps set, ready for its first call.

    Raises:
        InputError: the class is not a diffusers scheduler, it does not take the recorded config, or this version of
            diffusers derives other timesteps from it.
        MissingError: a package that the scheduler needs is not installed.
    """
    cls, config = scheduler_type(spec.class_name), spec.config_dict
    arguments = {key: config.pop(key) for key in TIMESTEP_ARGUMENTS if key in config}
    if unknown := sorted(config.keys() - scheduler_options(cls).keys()):
        raise InputError(f"{cls.__name__} has no option '{unknown[0]}': install the diffusers that recorded it")
    try:
        scheduler = cls.from_config(config)
    except (*SCHEDULER_ERRORS, ImportError) as error:
        raise InputError(f"{cls.__name__} refuses its config ({first_line(error)}): record it again") from error
    _set_timesteps(scheduler, spec.steps, arguments)
    if (timesteps := _timesteps(scheduler)) != spec.timesteps:
        raise InputError(
            f"{cls.__name__} was recorded with {_brief(spec.timesteps)}, but its config now gives {_brief(timesteps)}: "
            "install the diffusers that recorded it, or record the sampler again"
        )
    return scheduler


def is_recorded_as(scheduler: SchedulerMixin, spec: SamplerSpec) -> bool:
    """Whether a scheduler has the class and config of ``spec``. The number of steps is ignored."""
    config = {key: value for key, value in spec.config_dict.items() if key not in TIMESTEP_ARGUMENTS}
    return type(scheduler).__name__ == spec.class_name and _recorded_config(scheduler) == config


def scheduler_type(name: str) -> Any:
    """The diffusers scheduler class of that name.

    Raises InputError if diffusers has no such scheduler, MissingError if a required package is absent.
    """
    import diffusers  # noqa: TID251 - the home of diffusers

    cls = getattr(diffusers, name, None)
    # diffusers puts a placeholder in the place of a class whose packages are absent.
    if isinstance(cls, type) and hasattr(cls, "_backends"):
        raise MissingError(f"{name} needs the packages {', '.join(cls._backends)}: install them")
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise InputError(f"'{name}' is not a diffusers scheduler: name a class such as DDIMScheduler")
    return cls


def scheduler_options(cls: type) -> dict[str, Any]:
    """Every option of a scheduler class with its default."""
    parameters = inspect.signature(cls).parameters.values()
    return {option.name: option.default for option in parameters if option.kind is not option.VAR_KEYWORD}


def _recorded_config(scheduler: Any) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for key, default in scheduler_options(type(scheduler)).items():
        value = scheduler.config.get(key, default)
        # DPM-Solver's lambda_min_clipped is -inf by default, which JSON lacks.
        if not (isinstance(value, float) and math.isinf(value) and value == default):
            config[key] = _json_value(key, value)
    return config


def _set_timesteps(scheduler: Any, steps: int, arguments: Mapping[str, Any]) -> None:
    name = type(scheduler).__name__
    if scheduler.config.get("use_dynamic_shifting") and "mu" not in arguments:
        raise InputError(
            f"{name} shifts its timesteps by the image size, but 'mu' is missing: give 'mu' as an option of the "
            "sampler, or set use_dynamic_shifting to false"
        )
    count = {} if "sigmas" in arguments else {"num_inference_steps": steps}
    try:
        scheduler.set_timesteps(**count, **arguments)
    except SCHEDULER_ERRORS as error:
        raise UsageError(f"{name} cannot make {steps} steps ({first_line(error)}): change the options") from error
    if "sigmas" in arguments and scheduler.num_inference_steps != steps:
        raise UsageError(f"'sigmas' give {scheduler.num_inference_steps} steps instead of {steps}: give {steps} sigmas")
    if steps > 1 and len(set(_timesteps(scheduler))) == 1:
        # DPM-Solver, DEIS and UniPC do this with "leading" spacing and num_train_timesteps steps.
        raise UsageError(f"{steps} steps of {name} all have one timestep: choose fewer, or another timestep_spacing")
    if hasattr(scheduler, "set_begin_index"):
        # By default a scheduler whose first timestep value occurs twice starts at the second occurrence.
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

"""diffusers schedulers: how a configured scheduler is recorded in a SamplerSpec and rebuilt from it.

A spec holds the scheduler's whole config, defaults included, so that its meaning does not change with diffusers'
defaults. Three arguments of a scheduler's calls change its samples without being config. ``set_timesteps`` takes ``mu``
(dynamic shifting) and ``sigmas`` (the custom noise levels of some flow pipelines). ``step`` takes ``eta`` (the share of
noise). They are recorded in the config under their own names.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError, MissingError, UsageError, first_line
from dipgo_deploy.models.learned_scheduler import LearnedScheduler
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

if TYPE_CHECKING:
    from diffusers import SchedulerMixin  # noqa: TID251 - the home of diffusers

__all__ = [
    "LEARNED",
    "SCHEDULER_ERRORS",
    "call_argument_names",
    "cause",
    "check_step",
    "is_flow_scheduler",
    "is_recorded_as",
    "noise_arguments",
    "own_config",
    "record_scheduler",
    "scheduler_from_spec",
    "scheduler_options",
    "scheduler_type",
    "step_arguments",
]

LEARNED = LearnedScheduler.__name__
"""Class name of learned samplers, the only schedulers that are not of diffusers."""

_TIMESTEP_ARGUMENTS = ("mu", "sigmas", "strength")
_STEP_ARGUMENTS = ("eta",)

_GIVEN_TO_STEP = {"self", "model_output", "timestep", "sample"}
"""What a program can give to a scheduler's ``step``."""

SCHEDULER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions of diffusers for a config that a scheduler does not support (NotImplementedError is a RuntimeError)."""


def record_scheduler(scheduler: SchedulerMixin, steps: int, arguments: Mapping[str, Any]) -> SamplerSpec:
    """Set the timesteps of a scheduler and record it.

    Args:
        scheduler: the configured scheduler.
        steps: the argument of ``set_timesteps``.
        arguments: those of `call_argument_names` that differ from the scheduler's defaults.

    Returns:
        The spec, with one timestep per network call.

    Raises:
        UsageError: the scheduler cannot make that many steps, or an argument cannot be recorded.
        InputError: dynamic shifting without ``mu``, or a ``step`` that needs more than a program can give.
    """
    check_step(type(scheduler))
    arguments = {key: _json_value(key, value) for key, value in arguments.items()}
    _check_arguments(scheduler, arguments)
    if isinstance(scheduler, LearnedScheduler):
        _set_timesteps(scheduler, steps, arguments)  # Only the sampler of that number of steps is recorded.
    # DPMSolverSinglestep changes its own config for some numbers of steps, so the config is recorded before.
    config = json.dumps({**_recorded_config(scheduler), **arguments}, sort_keys=True, allow_nan=False)
    _set_timesteps(scheduler, steps, arguments)
    return SamplerSpec(type(scheduler).__name__, config, steps, _timesteps(scheduler))


def scheduler_from_spec(spec: SamplerSpec) -> SchedulerMixin:
    """Build the diffusers scheduler of ``spec``, with its timesteps set, ready for its first call.

    Raises:
        InputError: the class is not a diffusers scheduler, it does not take the recorded config, or this version of
            diffusers derives other timesteps from it.
        MissingError: a package that the scheduler needs is not installed.
    """
    cls, config = scheduler_type(spec.class_name), spec.config_dict
    check_step(cls)
    arguments = {key: config.pop(key) for key in call_argument_names(cls) if key in config}
    if unknown := sorted(config.keys() - scheduler_options(cls).keys()):
        raise InputError(f"{cls.__name__} has no option '{unknown[0]}': install the diffusers that recorded it")
    try:
        with suppress_diffusers_logging():
            scheduler = cls.from_config(config)
    except (*SCHEDULER_ERRORS, ImportError) as error:
        raise InputError(f"{cls.__name__} refuses its config ({cause(error)}): record it again") from error
    _set_timesteps(scheduler, spec.steps, arguments)
    if (timesteps := _timesteps(scheduler)) != spec.timesteps:
        raise InputError(
            f"{cls.__name__} was recorded with {_brief(spec.timesteps)}, but its config now gives {_brief(timesteps)}: "
            "install the diffusers that recorded it, or record the sampler again"
        )
    return scheduler


def call_argument_names(cls: type) -> tuple[str, ...]:
    """Arguments of ``set_timesteps`` and ``step`` that are recorded with the config. An option of that name is none."""
    options = scheduler_options(cls)
    return tuple(name for name in (*_TIMESTEP_ARGUMENTS, *_STEP_ARGUMENTS) if name not in options)


def step_arguments(spec: SamplerSpec) -> dict[str, Any]:
    """The recorded arguments of ``step``, besides output, timestep, sample and generator."""
    config, names = spec.config_dict, call_argument_names(scheduler_type(spec.class_name))
    return {key: config[key] for key in _STEP_ARGUMENTS if key in names and key in config}


def own_config(spec: SamplerSpec) -> dict[str, Any]:
    """The scheduler config of a recorded sampler, with its class and without arguments of the scheduler's calls.

    For a learned sampler, the config of the model's own scheduler.
    """
    if (base := spec.config_dict.get("base")) and spec.class_name == LEARNED:
        return dict(base)
    options = scheduler_options(scheduler_type(spec.class_name))
    return {"_class_name": spec.class_name, **{k: v for k, v in spec.config_dict.items() if k in options}}


def noise_arguments(scheduler: SchedulerMixin, seed: int, batch: int) -> dict[str, list[torch.Generator]]:
    """The argument of ``step`` that seeds the scheduler's own noise.

    Args:
        scheduler: the scheduler.
        seed: of image 0. Image i has ``seed + i``.
        batch: number of images.

    Returns:
        One generator per image as ``generator``, or nothing if ``step`` takes no generator.
    """
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return {}
    return {"generator": [torch.Generator().manual_seed(seed + index) for index in range(batch)]}


def check_step(cls: type) -> None:
    """Check that a program can give everything that a scheduler's ``step`` needs.

    Args:
        cls: the scheduler's class.

    Raises:
        InputError: the class has no ``step``, or ``step`` needs more than output, timestep and sample.
    """
    step = getattr(cls, "step", None)
    if step is None:
        raise InputError(f"{cls.__name__} has no step for a loop over timesteps: choose another sampler")
    parameters = inspect.signature(step).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if missing := [name for name in needed if name not in _GIVEN_TO_STEP]:
        raise InputError(
            f"every step of {cls.__name__} needs '{missing[0]}', which only its own pipelines have: choose another "
            "sampler"
        )


def cause(error: BaseException) -> str:
    """What diffusers says about a failure, on one line."""
    return "diffusers does not say why" if str(error).strip() in ("", "None") else first_line(error)


def is_flow_scheduler(class_name: str, config: Mapping[str, Any]) -> bool:
    """Whether a scheduler of this class and config is for flow-matching models."""
    if class_name == LEARNED:
        base = config.get("base") or {}
        return is_flow_scheduler(str(base.get("_class_name", "")), base)
    return "flow" in class_name.lower() or bool(config.get("use_flow_sigmas"))


def is_recorded_as(scheduler: SchedulerMixin, spec: SamplerSpec) -> bool:
    """Whether a scheduler has the class and config of ``spec``, as built or after ``set_timesteps``.

    The number of steps and the arguments of the scheduler's calls are ignored.
    """
    if type(scheduler).__name__ != spec.class_name:
        return False
    config, names = _recorded_config(scheduler), call_argument_names(type(scheduler))
    recorded = {key: value for key, value in spec.config_dict.items() if key not in names}
    return config == recorded or config == _recorded_config(scheduler_from_spec(spec))


def scheduler_type(name: str) -> Any:
    """The scheduler class of that name, of diffusers or LearnedScheduler.

    Raises InputError if there is no such scheduler, MissingError if a required package is absent.
    """
    import diffusers  # noqa: TID251 - the home of diffusers

    if name == LEARNED:
        return LearnedScheduler

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
    learned = {"samplers": [scheduler.sampler.document]} if isinstance(scheduler, LearnedScheduler) else {}
    for key, default in scheduler_options(type(scheduler)).items():
        value = learned.get(key, scheduler.config.get(key, default))
        # DPM-Solver's lambda_min_clipped is -inf by default, which JSON lacks.
        if not (isinstance(value, float) and math.isinf(value) and value == default):
            config[key] = _json_value(key, value)
    return config


def _check_arguments(scheduler: Any, arguments: Mapping[str, Any]) -> None:
    for method, names in (("set_timesteps", _TIMESTEP_ARGUMENTS), ("step", _STEP_ARGUMENTS)):
        accepted = inspect.signature(getattr(scheduler, method)).parameters
        if refused := [name for name in names if name in arguments and name not in accepted]:
            raise UsageError(f"{type(scheduler).__name__} takes no '{refused[0]}': leave that option out")


def _set_timesteps(scheduler: Any, steps: int, arguments: Mapping[str, Any]) -> None:
    name = type(scheduler).__name__
    arguments = {key: value for key, value in arguments.items() if key in _TIMESTEP_ARGUMENTS}
    count = {} if "sigmas" in arguments else {"num_inference_steps": steps}
    try:
        with suppress_diffusers_logging():
            scheduler.set_timesteps(**count, **arguments)
    except SCHEDULER_ERRORS as error:
        if scheduler.config.get("use_dynamic_shifting") and "mu" not in arguments:
            raise InputError(
                f"{name} shifts its timesteps by the image size, but 'mu' is missing: give 'mu' as an option of the "
                "sampler, or set use_dynamic_shifting to false"
            ) from error
        raise UsageError(f"{name} cannot make {steps} steps ({cause(error)}): change the options") from error
    if "sigmas" in arguments and scheduler.num_inference_steps != steps:
        raise UsageError(f"'sigmas' give {scheduler.num_inference_steps} steps instead of {steps}: give {steps} sigmas")
    if not all(map(math.isfinite, _timesteps(scheduler))):
        raise UsageError(f"{steps} steps of {name} give timesteps that are not finite: change the options")
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

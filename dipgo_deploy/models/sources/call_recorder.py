"""Record what a pipeline gives its denoiser: the pipeline runs up to the first step of its scheduler.

A recorder stands in place of the denoiser's forward and returns zeros, so that the denoiser itself does not run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import DipgoError, UsageError, first_line

__all__ = ["Recording", "record_call"]


class _Stop(Exception):
    """Ends the pipeline's call."""


@dataclass
class Recording:
    """The first step of a pipeline.

    Attributes:
        calls: arguments of the denoiser's calls by name.
        sample: the scheduler's sample. None if the pipeline makes no step.
    """

    calls: list[dict[str, Any]] = field(default_factory=list)
    sample: torch.Tensor | None = None


def record_call(pipeline: Any, module: nn.Module, call: Mapping[str, Any]) -> Recording:
    """Run a pipeline up to the first step of its scheduler.

    Args:
        pipeline: a diffusers pipeline.
        module: its denoiser.
        call: arguments of the pipeline's call.

    Returns:
        The denoiser's calls, at least one, and the scheduler's sample.

    Raises:
        UsageError: the call fails, or it makes no step.
    """
    recording = Recording()
    name = type(pipeline).__name__
    with _replaced(module, "forward", _recorder(module, recording)):
        step = _stopper(pipeline.scheduler, recording)
        with _replaced(pipeline.scheduler, "step", step), _silent(pipeline), torch.no_grad():
            try:
                pipeline(**call)
            except _Stop:
                pass
            except DipgoError:
                raise
            except Exception as error:
                raise UsageError(
                    f"the call of {name} fails ({first_line(error)}): pass the arguments that it needs"
                ) from None
    if recording.sample is None or not recording.calls:
        raise UsageError(
            f"{name} makes no step of its scheduler with its denoiser, so no schedule fits: use another pipeline"
        )
    return recording


def _recorder(module: nn.Module, recording: Recording) -> Callable[..., Any]:
    """A forward that notes its arguments and returns zeros."""
    from diffusers.models.modeling_outputs import Transformer2DModelOutput  # noqa: TID251 - the home of diffusers

    signature = inspect.signature(type(module).forward)
    config: Any = module.config

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(module, *args, **kwargs).arguments)
        arguments.pop("self", None)
        return_dict = arguments.pop("return_dict", True)
        recording.calls.append(arguments)
        latent = next(iter(arguments.values()))
        shape = list(latent.shape)
        shape[-1 if latent.ndim == 3 else 1] = config.get("out_channels") or config["in_channels"]
        output = latent.new_zeros(shape)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    return forward


def _stopper(scheduler: Any, recording: Recording) -> Callable[..., Any]:
    """A scheduler's step that notes its sample and ends the call."""
    own = scheduler.step
    signature = inspect.signature(own)

    @functools.wraps(own)
    def step(*args: Any, **kwargs: Any) -> Any:
        recording.sample = signature.bind(*args, **kwargs).arguments["sample"]
        raise _Stop

    return step


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of an object inside the context."""
    before = owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        del owner.__dict__[name]
        if before is not None:
            owner.__dict__[name] = before


@contextmanager
def _silent(pipeline: Any) -> Iterator[None]:
    """No progress bar inside the context."""
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)

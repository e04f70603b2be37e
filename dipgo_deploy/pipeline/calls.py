"""A pipeline's call of its denoiser, read as the flat named inputs of a bundle's graphs.

The signature is that of the diffusers class which the bundle was made from. An argument that the graphs have no input
for must have its default value, otherwise the call is refused. FLUX calls with packed tokens, its time goes from 0 to
1, and its position ids must be those of the latent's size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.models.presets.inputs import EXTRA, LEADING, REFERENCE
from dipgo_deploy.pipeline.latents import POSITIONS, LatentLayout, PackedLayout, RefusedCall

__all__ = ["CallReader", "NetworkCall", "RefusedCall"]

_NESTED = "added_cond_kwargs"
"""The argument whose entries are inputs themselves."""

_RETURN_DICT = "return_dict"

_JOINED = (EXTRA, LEADING, REFERENCE)
"""Inputs that a call passes as a part of its first argument."""


@dataclass(frozen=True)
class NetworkCall:
    """A call of the network.

    Attributes:
        latent: (rows, C, ...).
        timestep: on the scheduler's scale.
        tolerance: how far ``timestep`` may be from the schedule's, because a dtype rounds.
        conditioning: every other input by name.
        as_returned: turns a prediction (rows, C or 2C, ...) into the class's own form. That is the dtype of the latent,
            and packed tokens where the latent was packed.
        return_dict: whether the caller expects an output object instead of a tuple.
        clock: the timestep as the caller passed it, often a view of the scheduler's timesteps. None for a number.
    """

    latent: torch.Tensor
    timestep: float
    tolerance: float
    conditioning: Mapping[str, torch.Tensor]
    as_returned: Callable[[torch.Tensor], torch.Tensor]
    return_dict: bool
    clock: torch.Tensor | None = None


class CallReader:
    """Reads calls of one model class.

    Args:
        model_class: the diffusers class of the model that was traced.
        latent_shape: of one image.
        inputs: the inputs of the graphs, the latent first.

    Raises:
        InputError: diffusers has no such class.
    """

    def __init__(self, model_class: str, latent_shape: Sequence[int], inputs: Sequence[TensorSpec]) -> None:
        import diffusers  # noqa: TID251 - the signature of the class whose place is taken

        kind = getattr(diffusers, model_class, None)
        if kind is None:
            raise InputError(f"{model_class} is not a class of diffusers, so no pipeline calls it: use generate")
        self._signature = inspect.signature(kind.forward)
        self._latent = inputs[0].name
        self._integers = frozenset(spec.name for spec in inputs if spec.dtype in ("int64", "int32"))
        self._names = frozenset(spec.name for spec in inputs) - {*_JOINED}
        self._is_packed = set(POSITIONS) <= self._signature.parameters.keys()
        self._layout = (PackedLayout if self._is_packed else LatentLayout)(latent_shape, inputs)

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NetworkCall:
        """Read a call.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.

        Returns:
            The inputs of the graphs.

        Raises:
            RefusedCall: the call does not fit the bundle.
            TypeError: the class does not take these arguments, or a value is not a tensor of the right kind.
        """
        arguments = dict(self._signature.bind(None, *args, **kwargs).arguments)
        arguments.pop("self", None)
        return_dict = bool(arguments.pop(_RETURN_DICT, True))
        inputs = self._inputs(arguments)
        if missing := sorted(self._names - inputs.keys()):
            raise RefusedCall(f"the bundle needs {missing[0]}, the call has {', '.join(sorted(inputs))}: pass it")
        timestep = inputs.pop(TIMESTEP)
        for name, value in inputs.items():
            self._check_tensor(name, value)
        latent = inputs.pop(self._latent)
        time, tolerance = _read_time(timestep, 1000.0 if self._is_packed else 1.0)
        unpacked, joined = self._layout.split(latent)
        self._layout.check_positions(arguments)

        def as_returned(prediction: torch.Tensor) -> torch.Tensor:
            return self._layout.joined_again(prediction.to(latent.device, latent.dtype))

        clock = timestep if isinstance(timestep, torch.Tensor) else None
        return NetworkCall(unpacked, time, tolerance, {**inputs, **joined}, as_returned, return_dict, clock)

    def _inputs(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for name, value in arguments.items():
            if name == _NESTED and isinstance(value, Mapping):
                inputs |= self._inputs(value)
            elif name in self._names and value is not None:
                inputs[name] = value
            elif not self._has_no_effect(name, value):
                raise RefusedCall(f"the bundle has no input for {name}, which the call passes: {_remedy(name)}")
        return inputs

    def _check_tensor(self, name: str, value: Any) -> None:
        """Raise TypeError for a value that the class cannot take either."""
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.is_meta:
            raise TypeError(f"{name} is on the device meta, so it has no values")
        kind = "integer" if name in self._integers else "floating" if name == self._latent else None
        if kind and value.is_floating_point() != (kind == "floating"):
            raise TypeError(f"{name} must be {kind}, got {str(value.dtype).removeprefix('torch.')}")

    def _has_no_effect(self, name: str, value: Any) -> bool:
        """Whether an argument is None, empty, at its default, or a constant of the graphs."""
        if value is None or (self._is_packed and name in POSITIONS):
            return True
        if isinstance(value, Mapping | list | tuple):
            return len(value) == 0
        default = self._signature.parameters[name].default if name in self._signature.parameters else None
        return not isinstance(value, torch.Tensor) and default is not None and bool(value == default)


def _remedy(name: str) -> str:
    if name.endswith("attention_kwargs"):
        return "leave it out (a LoRA must be fused before tracing, with with_loras)"
    return "leave it out, or run the PyTorch model (fallback=True)"


def _read_time(timestep: Any, scale: float) -> tuple[float, float]:
    """The timestep that all rows share, and how far its dtype may have rounded it."""
    if not isinstance(timestep, torch.Tensor | int | float | np.ndarray | np.generic | list | tuple):
        raise TypeError(f"timestep must be a number or a torch.Tensor, got {type(timestep).__name__}")
    tensor = torch.as_tensor(timestep).reshape(-1)
    if not len(tensor) or tensor.is_meta:
        raise TypeError("timestep has no value")
    first = float(tensor[0])
    if len(tensor) > 1 and not bool((tensor == tensor[0]).all()):
        raise RefusedCall(f"the bundle takes one timestep for all rows, got {len(tensor.unique())}: use PyTorch")
    rounding = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
    return first * scale, 1e-3 + rounding * abs(first * scale)

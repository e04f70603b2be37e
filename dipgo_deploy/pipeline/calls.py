"""The refusal of a call that a bundle was not made for.

A pipeline's call of its denoiser, read as the named flat inputs of a bundle's graphs.

The signature is that of the diffusers class the bundle was made of. Whatever the graphs have no input for must be left
at its default; what a class only passes along (FLUX's position ids, which follow from the latent shape) is not looked
at. FLUX calls with packed tokens and counts time from 0 to 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.models.presets.mmdit import pack, unpack

__all__ = ["CallReader", "NetworkCall", "RefusedCall"]


class RefusedCall(UsageError):
    """A call outside the contract of a bundle. With ``fallback=True`` the PyTorch model takes it instead."""


_NESTED = "added_cond_kwargs"
"""The argument whose entries are inputs of their own."""

_RETURN_DICT = "return_dict"

_PLACES = ("img_ids", "txt_ids")
"""Position ids of FLUX, which the graphs hold themselves."""


@dataclass(frozen=True)
class NetworkCall:
    """One call: ``latent`` (rows, C, …), the timestep on the scheduler's scale and how far it may be off for its dtype.

    ``conditioning`` holds every other input by name; ``returned`` turns the prediction (rows, C or 2C, …) into what the
    class returns: the dtype of the latent, packed where the latent was.
    """

    latent: torch.Tensor
    timestep: float
    tolerance: float
    conditioning: Mapping[str, torch.Tensor]
    returned: Callable[[torch.Tensor], torch.Tensor]
    return_dict: bool


class CallReader:
    """Reads calls of one model class.

    Args:
        model_class: the diffusers class, and so the signature, of the model that was traced.
        latent_shape: of one image.
        names: the inputs of the graphs, the latent first.

    Raises:
        InputError: the class is none of diffusers.
    """

    def __init__(self, model_class: str, latent_shape: Sequence[int], names: Sequence[str]) -> None:
        import diffusers  # noqa: TID251 - the signature of the class whose place is taken

        kind = getattr(diffusers, model_class, None)
        if kind is None:
            raise InputError(f"{model_class} is no class of diffusers, no pipeline calls it: run the bundle alone")
        self._signature = inspect.signature(kind.forward)
        self._shape, self._latent, self._names = tuple(latent_shape), names[0], frozenset(names)
        self._is_packed = set(_PLACES) <= self._signature.parameters.keys()

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NetworkCall:
        """The inputs of a call. Raises RefusedCall, or TypeError for arguments that the class does not take."""
        given = dict(self._signature.bind(None, *args, **kwargs).arguments)
        given.pop("self", None)
        return_dict = bool(given.pop(_RETURN_DICT, True))
        inputs = self._inputs(given)
        if missing := sorted(self._names - inputs.keys()):
            raise RefusedCall(f"the bundle needs {missing[0]}, the call gives {', '.join(sorted(inputs))}: give it")
        latent, timestep = inputs.pop(self._latent), inputs.pop(TIMESTEP)
        time, tolerance = _read_time(timestep, 1000.0 if self._is_packed else 1.0)
        unpacked = self._unpacked(latent)

        def returned(prediction: torch.Tensor) -> torch.Tensor:
            own = prediction.to(latent.device, latent.dtype)
            return pack(own) if self._is_packed else own

        return NetworkCall(unpacked, time, tolerance, inputs, returned, return_dict)

    def _inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for name, value in given.items():
            if name == _NESTED and isinstance(value, Mapping):
                inputs |= self._inputs(value)
            elif name in self._names and value is not None:
                inputs[name] = value
            elif not self._is_idle(name, value):
                raise RefusedCall(f"the bundle has no input for {name}, the call gives it: {_remedy(name)}")
        return inputs

    def _is_idle(self, name: str, value: Any) -> bool:
        """Whether an argument changes nothing: left out, at its default or empty, or fixed in the graphs."""
        if value is None or (self._is_packed and name in _PLACES):
            return True
        if isinstance(value, Mapping | list | tuple):
            return len(value) == 0
        default = self._signature.parameters[name].default if name in self._signature.parameters else None
        return not isinstance(value, torch.Tensor) and default is not None and bool(value == default)

    def _unpacked(self, latent: torch.Tensor) -> torch.Tensor:
        if not self._is_packed:
            return latent
        channels, height, width = self._shape
        tokens = (height // 2 * (width // 2), channels * 4)
        if tuple(latent.shape[1:]) != tokens:
            raise RefusedCall(
                f"the bundle is made for latents of shape {self._shape}, {tokens[0]} tokens of {tokens[1]}, found "
                f"{latent.shape[1]} of {latent.shape[2]}: set height and width"
            )
        return unpack(latent, height, width)


def _remedy(name: str) -> str:
    if name.endswith("attention_kwargs"):
        return "leave it out (a LoRA is fused before the model is traced: --lora)"
    return "leave it out, or run the PyTorch model (fallback=True)"


def _read_time(timestep: Any, scale: float) -> tuple[float, float]:
    """The one timestep of a call, and how far rounding to its dtype may have moved it."""
    tensor = torch.as_tensor(timestep).reshape(-1)
    first = float(tensor[0])
    if len(tensor) > 1 and not bool((tensor == tensor[0]).all()):
        raise RefusedCall(f"the bundle takes one timestep for all rows, found {len(tensor.unique())}: use PyTorch")
    rounding = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
    return first * scale, 1e-3 + rounding * abs(first * scale)

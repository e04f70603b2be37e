"""Live modules that no trace can show: quantised layers, offloading, caches between steps, and compiled parts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError

__all__ = ["check_live", "latent_argument", "unwrapped"]

_QUANTISERS = (
    "bitsandbytes", "optimum.quanto", "quanto", "torchao", "torch.ao.nn", "auto_gptq", "gptqmodel", "nunchaku",
    "compressed_tensors", "hqq", "diffusers.quantizers",
)  # fmt: skip
"""Packages of layers and tensors that hold quantised weights."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``, which computes the same."""
    original = getattr(module, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else module


def latent_argument(module: nn.Module) -> str:
    """Name of the first argument of a network's forward. A forward that someone has replaced may not name it."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:2]
    if parameters and parameters[0].kind is parameters[0].POSITIONAL_OR_KEYWORD:
        return parameters[0].name
    return "hidden_states" if "Transformer" in type(module).__name__ else "sample"


def check_live(module: nn.Module) -> None:
    """Raise InputError for a module whose forward is not a function of its inputs and of plain weights.

    Args:
        module: the network.

    Raises:
        InputError: a part is quantised, offloaded, compiled or keeps values between steps. The message names the part
            and what to do.
    """
    for path, part in module.named_modules():
        for problem, remedy in _problems(part):
            where = f"in {path}" if path else "in the module itself"
            raise InputError(f"this {type(module).__name__} has {problem} {where}, which a trace cannot hold: {remedy}")


def _problems(part: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(getattr(part, "_orig_mod", None), nn.Module):
        yield "a part compiled by torch.compile", "give the module without torch.compile"
    if type(getattr(part, "_hf_hook", None)).__name__ not in ("NoneType", "ModelHook"):
        yield "offloading hooks of accelerate", "remove them first, with pipe.remove_all_hooks()"
    if hooks := getattr(getattr(part, "_diffusers_hook", None), "hooks", None):
        yield f"a hook of diffusers ({next(iter(hooks))})", "give the module before caching, casting or offloading"
    if (holder := _quantised(part)) is not None:
        yield f"quantised weights ({holder})", "give the unquantised model"


def _quantised(part: nn.Module) -> str | None:
    """The class of quantised weights of one submodule, None if all weights are plain."""
    if _is_of_quantiser(type(part)):
        return type(part).__name__
    tensors: list[Any] = [*part._parameters.values(), *part._buffers.values()]
    for tensor in tensors:
        kinds = [] if tensor is None else [type(tensor), type(tensor.data)]
        if odd := [kind for kind in kinds if kind not in (torch.Tensor, nn.Parameter) and _is_of_quantiser(kind)]:
            return odd[0].__name__
    weight = part._parameters.get("weight")
    is_integer = weight is not None and not (weight.is_floating_point() or weight.is_complex())
    return str(weight.dtype).removeprefix("torch.") if weight is not None and is_integer else None


def _is_of_quantiser(kind: type) -> bool:
    return kind.__module__.startswith(_QUANTISERS)

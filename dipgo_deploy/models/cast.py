"""The dtype of every tensor of a model that is loaded or converted in half precision, as diffusers chooses it.

1. Some classes name modules that stay in float32 (``_keep_in_fp32_modules``), such as the norms of Wan. A module is in
   the list if a part of a tensor's name is.
2. Buffers that are not part of the state dict, such as position embeddings, keep their dtype in half precision.
3. Every other floating-point tensor takes the requested dtype. In float32 and float64, this holds for all of them.

diffusers follows rule 1 in ``from_pretrained``. In ``from_single_file`` it does so only for float16. Here rule 1 holds
for both, because a bundle of the model is a folder, and must give back the model that was exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import UsageError

__all__ = ["DTYPES", "check_dtype", "cast_copy", "cast_in_place", "keeps_float32", "network_dtype"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""Dtypes that a model may be loaded in, by name."""

_HALF = (torch.float16, torch.bfloat16)


def keeps_float32(module_class: type, dtype: torch.dtype) -> bool:
    """Whether a class keeps some of its modules in float32 in this dtype."""
    return dtype in _HALF and bool(getattr(module_class, "_keep_in_fp32_modules", None))


def cast_in_place(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a module. Its parameters stay the same objects.

    Args:
        module: the network.
        dtype: the requested dtype.

    Returns:
        ``module``.
    """
    for name, parameter in module.named_parameters():
        parameter.data = parameter.data.to(_target(module, name, parameter, dtype, persistent=True))
    for owner, key, name, buffer, persistent in _buffers(module):
        owner._buffers[key] = buffer.to(_target(module, name, buffer, dtype, persistent))
    return module


def network_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that a module computes in: that of its first parameter that its class does not keep in float32."""
    parameters = list(module.named_parameters())
    free = [tensor.dtype for name, tensor in parameters if tensor.is_floating_point() and not _is_kept(module, name)]
    return free[0] if free else parameters[0][1].dtype


def cast_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module in ``dtype``. Nothing is shared with the module.

    deepcopy meets the cast tensors in its memo, so there is never a copy in the old dtype. Peak memory is one module in
    each dtype.

    Args:
        module: the network, which stays as it is.
        dtype: the requested dtype.

    Returns:
        The copy.
    """
    memo: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        target = _target(module, name, parameter, dtype, persistent=True)
        memo[id(parameter)] = nn.Parameter(parameter.detach().to(target, copy=True), False)
    for _, _, name, buffer, persistent in _buffers(module):
        memo[id(buffer)] = buffer.detach().to(_target(module, name, buffer, dtype, persistent), copy=True)
    return deepcopy(module, memo)


def _target(module: nn.Module, name: str, tensor: torch.Tensor, dtype: torch.dtype, persistent: bool) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    if dtype not in _HALF:
        return dtype
    if not persistent:
        return torch.float32 if tensor.dtype == torch.float64 else tensor.dtype
    return torch.float32 if _is_kept(module, name) else dtype


def _is_kept(module: nn.Module, name: str) -> bool:
    return bool({*(getattr(module, "_keep_in_fp32_modules", None) or ())} & {*name.split(".")})


def _buffers(module: nn.Module) -> Iterator[tuple[nn.Module, str, str, torch.Tensor, bool]]:
    """Every buffer: its owner, its key there, its whole name, itself, and whether the state dict has it."""
    for path, owner in module.named_modules():
        for key, buffer in owner._buffers.items():
            if buffer is not None:
                yield owner, key, f"{path}.{key}", buffer, key not in owner._non_persistent_buffers_set


def check_dtype(dtype: str) -> None:
    """Raise UsageError unless ``dtype`` is a name of DTYPES."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)}")

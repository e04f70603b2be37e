"""The header of a safetensors file: names, shapes and types of its tensors, without their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from dipgo_deploy.core.errors import InputError, first_line

__all__ = ["Header", "read_header"]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about its tensors.

    Attributes:
        shapes: shape of each tensor by name.
        dtypes: type of each tensor by name, as safetensors spells it: ``F32``, ``BF16``, ``F8_E4M3``.
        metadata: further entries, which are free text.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]

    def on_meta(self) -> dict[str, torch.Tensor]:
        """The tensors on the device meta."""
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}


def read_header(path: Path) -> Header:
    """Read a header.

    Args:
        path: a ``.safetensors`` file.

    Returns:
        The header.

    Raises:
        InputError: the file is damaged, or holds no tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{path} is not a readable safetensors checkpoint ({line}): restore it") from None
    if not slices:
        raise InputError(f"{path} holds no tensors: give a checkpoint")
    return Header(
        {name: tuple(part.get_shape()) for name, part in slices.items()},
        {name: str(part.get_dtype()) for name, part in slices.items()},
        metadata,
    )

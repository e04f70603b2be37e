"""LoRA files: how the command line names them, and what diffusers reads from them.

diffusers converts the names of every tool's files. Its conversions drop some tensors with a log message at most. So the
same conversion runs on markers too, tensors that hold a number each, and the numbers that arrive tell what was kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.lora_formats import bake_alphas, check_format, layer_of, without_zero_differences

__all__ = ["LORA_CLASSES", "Adapter", "LoraFile", "lora_from_text", "lora_loader", "loras_from_texts", "read_lora"]

_LOADERS = {
    "UNet2DConditionModel": "StableDiffusionXLLoraLoaderMixin",  # also reads files for Stable Diffusion 1 and 2
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    "WanTransformer3DModel": "WanLoraLoaderMixin",
}
"""The part of diffusers that reads LoRA files, by model class."""

LORA_CLASSES = tuple(_LOADERS)
"""Model classes whose LoRA files diffusers reads."""

_SUFFIX = ".safetensors"

_METADATA = "lora_adapter_metadata"
"""Entry of a file's header in which diffusers saves the PEFT config: ranks, alphas, DoRA, rank-stabilized scaling."""

_SAFE_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Initializations of a PEFT config that leave the base weights alone. Others subtract something from them."""


@dataclass(frozen=True)
class Adapter:
    """What a LoRA file holds.

    Attributes:
        tensors: tensors under diffusers' names, each with its component first: ``unet.mid_block...``.
        config: entries of the PEFT config in the file's header, by component and entry. None if there is no config.
        layers: the layers in the file's own spelling.
        origins: by name of a converted tensor, the layers that it was made from.
    """

    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any] | None
    layers: tuple[str, ...]
    origins: Mapping[str, frozenset[str]]

    def part(self, component: str) -> dict[str, torch.Tensor]:
        """The tensors of one component, under their names in that component."""
        prefix = f"{component}."
        return {name.removeprefix(prefix): self.tensors[name] for name in self.tensors if name.startswith(prefix)}

    def part_config(self, component: str) -> dict[str, Any] | None:
        """The PEFT config of one component. None if the tensors' shapes say everything."""
        prefix = f"{component}."
        entries = (self.config or {}).items()
        return {name.removeprefix(prefix): value for name, value in entries if name.startswith(prefix)} or None


@dataclass(frozen=True)
class LoraFile:
    """An adapter's file and the scale it is fused with."""

    path: Path
    scale: float = 1.0


def lora_from_text(text: str) -> LoraFile:
    """Parse ``FILE`` or ``FILE:SCALE``.

    Raises UsageError for a file that is not safetensors, or a scale that is not a finite number.
    """
    head, colon, tail = text.rpartition(":")
    path, scale = (Path(head), tail) if colon and head.endswith(_SUFFIX) else (Path(text), "1")
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"lora {text}: the scale {scale!r} is not a number: give FILE or FILE:SCALE")
    if path.is_dir():
        raise UsageError(f"lora {text}: {path} is a folder: give the {_SUFFIX} file in it")
    if path.suffix != _SUFFIX:
        raise UsageError(f"lora {text}: {path.name} is not a {_SUFFIX} file: convert it")
    return LoraFile(path, number)


def loras_from_texts(texts: Sequence[str] | None) -> tuple[LoraFile, ...]:
    """Parse every value of a repeated option (see ``lora_from_text``). None gives no adapters."""
    return tuple(map(lora_from_text, texts or ()))


def lora_loader(class_name: str) -> Any:
    """The part of diffusers that reads LoRA files for this class of models."""
    import diffusers.loaders.lora_pipeline as loaders  # noqa: TID251 - the home of diffusers

    return getattr(loaders, _LOADERS[class_name])


def read_lora(path: Path, class_name: str, config: Mapping[str, Any]) -> Adapter:
    """Read a whole file. Exceptions of diffusers and safetensors are passed on.

    Args:
        path: the file.
        class_name: the denoiser's class, one of LORA_CLASSES.
        config: the denoiser's config.

    Returns:
        The adapter, for the denoiser and the text encoders together.

    Raises:
        InputError: the file has a format that cannot be fused, or its numbers are not finite.
    """
    stored, header = _read(path)
    if bad := next((name for name, tensor in stored.items() if not tensor.isfinite().all()), None):
        raise InputError(f"{path} holds numbers in {bad} that are not finite: use an undamaged file")
    tensors = without_zero_differences(stored)
    check_format(path, tensors, keeps_biases=class_name.startswith("Wan"))
    if header is not None and any(name.endswith(".alpha") for name in tensors):
        raise InputError(f"{path} gives its alphas twice, as tensors and in its header: save it again with one of them")
    tensors = bake_alphas(tensors)
    # Equal numbers are what a conversion cannot change: it renames, splits and joins tensors.
    markers = {name: torch.tensor(float(i)).expand(tensors[name].shape) for i, name in enumerate(tensors, start=1)}
    layers = [layer_of(name) for name in tensors]
    origins = {
        name: frozenset(layers[int(i) - 1] for i in marker.flatten(1)[:, 0].unique() if i)
        for name, marker in _converted(markers, class_name, config).items()
        if marker.dim() > 1
    }
    return Adapter(_converted(tensors, class_name, config), header, tuple(dict.fromkeys(layers)), origins)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Tensors and PEFT config of a file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_METADATA)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    config = json.loads(text) if text else None
    if not isinstance(config, dict | None):
        raise InputError(f"the entry {_METADATA} in the header of {path} is not a JSON object: save the file again")
    for name, value in (config or {}).items():
        if name.endswith(".init_lora_weights") and value not in _SAFE_INITS:
            raise InputError(
                f"{path} was initialized by {value}, which changes the base weights: convert it to a plain LoRA"
            )
    return tensors, config


def _converted(
    tensors: Mapping[str, torch.Tensor], class_name: str, config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors under the names of diffusers' models and PEFT's layers."""
    options = {"unet_config": config} if class_name == "UNet2DConditionModel" else {}
    result = lora_loader(class_name).lora_state_dict(dict(tensors), **options)
    # Some loaders return the tensors alone, others also alphas, of which none are left.
    return dict(result[0] if isinstance(result, tuple) else result)

"""LoRA files: how the command line names them, and what diffusers reads from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipgo_deploy.core.errors import UsageError

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

Adapter = tuple[dict[str, Any], dict[str, Any] | None]
"""Tensors under diffusers' names, and the alphas of a kohya file."""


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
    """Read a whole file. diffusers' exceptions are passed on.

    Args:
        path: the file.
        class_name: the denoiser's class, one of LORA_CLASSES.
        config: the denoiser's config.

    Returns:
        Tensors and alphas, for the denoiser and the text encoders together.
    """
    options: dict[str, Any] = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
    if class_name == "UNet2DConditionModel":
        options["unet_config"] = config
    if class_name == "FluxTransformer2DModel":
        options["return_alphas"] = True
    result = lora_loader(class_name).lora_state_dict(str(path.parent), **options)
    # Some loaders return the tensors alone, others also alphas and metadata.
    state, alphas = result[:2] if isinstance(result, tuple) else (result, None)
    return dict(state), alphas

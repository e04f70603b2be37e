"""LoRA adapters, fused into the weights before a model is traced: after that there are no layers to adapt.

diffusers reads the files (its own layout, kohya's and others) and PEFT makes layers of them, which are merged and taken
out again, so that the model has the modules and names it had. Only the denoiser's part is fused: a bundle's text
encoders stay as their pipeline has them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.models.loading import LoadedModel

__all__ = ["LoraFile", "lora_from_text", "loras_from_texts", "with_loras"]

_LOADERS = {
    "UNet2DConditionModel": "StableDiffusionXLLoraLoaderMixin",  # reads those of Stable Diffusion 1 and 2 too
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    "WanTransformer3DModel": "WanLoraLoaderMixin",
}
"""By model class, the part of diffusers that reads its LoRA files."""

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class LoraFile:
    """An adapter's file and the weight it is fused with."""

    path: Path
    scale: float = 1.0


def lora_from_text(text: str) -> LoraFile:
    """``FILE`` or ``FILE:SCALE``, as on the command line.

    Raises UsageError for a file of another format than safetensors or a scale that is not finite.
    """
    head, colon, tail = text.rpartition(":")
    path, scale = (Path(head), tail) if colon and head.endswith(_SUFFIX) else (Path(text), "1")
    try:
        weight = float(scale)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UsageError(f"--lora {text}: {scale!r} is no scale, a number is wanted: give FILE or FILE:SCALE")
    if path.suffix != _SUFFIX:
        raise UsageError(f"--lora {text}: {path.name} is no {_SUFFIX} file, others are not read: convert it")
    return LoraFile(path, weight)


def loras_from_texts(texts: Sequence[str] | None) -> tuple[LoraFile, ...]:
    """Every value of a repeated option, see ``lora_from_text``; none where it is left out."""
    return tuple(map(lora_from_text, texts or ()))


def with_loras(model: LoadedModel, loras: Sequence[LoraFile]) -> LoadedModel:
    """``model`` with adapters fused in, one after the other; its module is changed, and so its digest is another.

    Raises InputError where a file is damaged or made for another model, MissingError where peft is absent, UsageError
    for a class whose adapters diffusers does not read.
    """
    if not loras:
        return model
    if model.class_name not in _LOADERS:
        known = ", ".join(_LOADERS)
        raise UsageError(f"a LoRA for {model.class_name} is not known, those of {known} are: fuse it yourself")
    if find_spec("peft") is None:
        raise MissingError("a LoRA needs peft, which is not installed: pip install 'dipgo-deploy[lora]'")
    for lora in loras:
        _fuse(model, lora)
    return replace(model)


def _fuse(model: LoadedModel, lora: LoraFile) -> None:
    if not lora.path.is_file():
        raise InputError(f"{lora.path} does not exist: check the path of the LoRA")
    module: Any = model.module
    try:
        state, alphas = _read(model, lora.path)
        own = {name: tensor for name, tensor in state.items() if name.startswith(f"{model.component}.")}
        if own:
            alphas = {name: alpha for name, alpha in (alphas or {}).items() if name.startswith(f"{model.component}.")}
            module.load_lora_adapter(own, prefix=model.component, network_alphas=alphas or None)
            module.fuse_lora(lora.scale, safe_fusing=True)
            module.unload_lora()
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{lora.path} cannot be fused into this {model.class_name} ({line}): use its own") from None
    if not own:
        raise InputError(f"{lora.path} adapts nothing of this {model.class_name}: use a LoRA that was made for it")
    if len(own) < len(state):
        warnings.warn(f"{lora.path} also adapts text encoders: that part is left out", stacklevel=3)
    module.requires_grad_(False)


def _read(model: LoadedModel, path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Tensors by the names of diffusers, and kohya's alphas where it has some."""
    import diffusers.loaders.lora_pipeline as loaders  # noqa: TID251 - the home of diffusers

    options: dict[str, Any] = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
    if model.component == "unet":
        options["unet_config"] = model.module.config
    if model.class_name == "FluxTransformer2DModel":
        options["return_alphas"] = True
    found = getattr(loaders, _LOADERS[model.class_name]).lora_state_dict(str(path.parent), **options)
    state, alphas = found[:2] if isinstance(found, tuple) else (found, None)
    return dict(state), alphas

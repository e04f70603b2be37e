"""LoRA adapters, fused into the weights before a model is traced: after that there are no layers to adapt.

diffusers reads the files (its own layout, kohya's and others) and PEFT makes layers of them, which are merged and taken
out again, so that the model has the modules and names it had. Only the denoiser's part is fused: a bundle's text
encoders stay as their pipeline has them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, MissingError, UsageError, first_line
from dipgo_deploy.models.loading import LoadedModel
from dipgo_deploy.models.quiet import quiet_diffusers

__all__ = ["LoraFile", "lora_from_text", "loras_from_texts", "with_loras"]

_LOADERS = {
    "UNet2DConditionModel": "StableDiffusionXLLoraLoaderMixin",  # reads those of Stable Diffusion 1 and 2 too
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    "WanTransformer3DModel": "WanLoraLoaderMixin",
}
"""By model class, the part of diffusers that reads its LoRA files."""

_SUFFIX = ".safetensors"

_Adapter = tuple[dict[str, Any], dict[str, Any] | None]
"""Tensors by the names of diffusers, and kohya's alphas where it has some."""


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
    """``model`` with adapters fused in; its module is changed, and so its digest is another.

    Every file is read before the first is fused, and what cannot be fused leaves the module as it was.
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
    _fuse(model, loras, [_own(model, lora.path) for lora in loras])
    return replace(model)


def _own(model: LoadedModel, path: Path) -> _Adapter:
    """The part of a file that adapts the denoiser, and its alphas."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path of the LoRA")
    with _named(model, str(path)):
        state, alphas = _read(model, path)
    prefix = f"{model.component}."
    own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not own:
        raise InputError(f"{path} adapts nothing of this {model.class_name}: use a LoRA that was made for it")
    if odd := next((name for name, tensor in own.items() if not tensor.isfinite().all()), None):
        raise InputError(f"{path} holds numbers in {odd} that are not finite: use a whole file")
    if len(own) < len(state):
        warnings.warn(f"{path} also adapts text encoders: that part is left out", stacklevel=4)
    return own, {name: alpha for name, alpha in (alphas or {}).items() if name.startswith(prefix)} or None


def _fuse(model: LoadedModel, loras: Sequence[LoraFile], adapters: Sequence[_Adapter]) -> None:
    """Make layers of all adapters, then merge them at once: whatever fails, the module is as it was."""
    module: Any = model.module
    names = [f"lora{index}" for index in range(len(loras))]
    try:
        for name, lora, (tensors, alphas) in zip(names, loras, adapters, strict=True):
            with _named(model, str(lora.path)), quiet_diffusers(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT warns of a second adapter
                module.load_lora_adapter(tensors, prefix=model.component, network_alphas=alphas, adapter_name=name)
        with _named(model, ", ".join(str(lora.path) for lora in loras)), _restored(module):
            module.set_adapters(names, [lora.scale for lora in loras])
            module.fuse_lora(safe_fusing=True)
    finally:
        module.unload_lora()
        module.requires_grad_(False)


@contextmanager
def _named(model: LoadedModel, files: str) -> Iterator[None]:
    """Whatever diffusers and PEFT raise as an InputError that names the files."""
    try:
        yield
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{files} cannot be fused into this {model.class_name} ({line}): use its own") from None


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Put the weights of adapted layers back where one of them cannot be merged."""
    kept = {name: own.detach().clone() for name, own in module.named_parameters() if ".base_layer." in name}
    try:
        yield
    except Exception:
        with torch.no_grad():
            for name, own in module.named_parameters():
                if name in kept:
                    own.copy_(kept[name])
        raise


def _read(model: LoadedModel, path: Path) -> _Adapter:
    """All of a file."""
    import diffusers.loaders.lora_pipeline as loaders  # noqa: TID251 - the home of diffusers

    options: dict[str, Any] = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
    if model.component == "unet":
        options["unet_config"] = model.module.config
    if model.class_name == "FluxTransformer2DModel":
        options["return_alphas"] = True
    found = getattr(loaders, _LOADERS[model.class_name]).lora_state_dict(str(path.parent), **options)
    state, alphas = found[:2] if isinstance(found, tuple) else (found, None)
    return dict(state), alphas

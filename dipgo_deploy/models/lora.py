"""LoRA adapters, fused into the weights before a model is traced: after that there are no layers to adapt.

diffusers reads the files (its own layout, kohya's and others) and PEFT makes layers of them, which are merged and taken
out again, so that the model has the modules and names it had. The part that belongs to the pipeline's text encoders
is remembered, and fused where they are loaded or written: see ``text_loras``.
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
from dipgo_deploy.models.pipeline_folder import component_names
from dipgo_deploy.models.quiet import quiet_diffusers

__all__ = ["LoraFile", "lora_from_text", "lora_loader", "loras_from_texts", "read_lora", "with_loras"]

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

    Every file is read before the first is fused, and what cannot be fused leaves the module as it was. Text encoders
    that a file adapts too are named in ``text_loras`` where the model's pipeline has them; else a warning says so.
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
    files = [_whole(model, lora.path) for lora in loras]
    adapters = [_own(model, lora.path, file) for lora, file in zip(loras, files, strict=True)]
    text_loras = _text_loras(model, loras, files)
    _fuse(model, loras, adapters)
    return replace(model, text_loras=text_loras)


def lora_loader(model: LoadedModel) -> Any:
    """The part of diffusers that reads LoRA files for this class of models."""
    import diffusers.loaders.lora_pipeline as loaders  # noqa: TID251 - the home of diffusers

    return getattr(loaders, _LOADERS[model.class_name])


def _whole(model: LoadedModel, path: Path) -> _Adapter:
    """A file that adapts this model, read."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path of the LoRA")
    with _named(model, str(path)):
        state, alphas = read_lora(model, path)
    if odd := next((name for name, tensor in state.items() if not tensor.isfinite().all()), None):
        raise InputError(f"{path} holds numbers in {odd} that are not finite: use a whole file")
    return state, alphas


def _text_loras(
    model: LoadedModel, loras: Sequence[LoraFile], files: Sequence[_Adapter]
) -> dict[str, tuple[LoraFile, ...]]:
    """The files that adapt each text encoder of the model's pipeline."""
    folder = model.folder
    is_pipeline = folder is not None and (folder / "model_index.json").is_file()
    there = component_names(folder) if folder is not None and is_pipeline else ()
    found: dict[str, tuple[LoraFile, ...]] = dict(model.text_loras)
    for lora, (state, _) in zip(loras, files, strict=True):
        for name in sorted({name.partition(".")[0] for name in state} - {model.component}):
            if name in there and hasattr(lora_loader(model), "load_lora_into_text_encoder"):
                found[name] = (*found.get(name, ()), lora)
            else:
                place = folder or f"this {model.class_name}"
                warnings.warn(f"{lora.path} also adapts {name}, which {place} lacks: that is left out", stacklevel=3)
    return found


def _own(model: LoadedModel, path: Path, file: _Adapter) -> _Adapter:
    """The part of a file that adapts the denoiser, and its alphas."""
    state, alphas = file
    prefix = f"{model.component}."
    own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not own:
        raise InputError(f"{path} adapts nothing of this {model.class_name}: use a LoRA that was made for it")
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


def read_lora(model: LoadedModel, path: Path) -> _Adapter:
    """All of a file, with whatever diffusers raises."""
    options: dict[str, Any] = {"weight_name": path.name, "use_safetensors": True, "local_files_only": True}
    if model.component == "unet":
        options["unet_config"] = model.module.config
    if model.class_name == "FluxTransformer2DModel":
        options["return_alphas"] = True
    found = lora_loader(model).lora_state_dict(str(path.parent), **options)
    state, alphas = found[:2] if isinstance(found, tuple) else (found, None)
    return dict(state), alphas

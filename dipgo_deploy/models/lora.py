"""LoRA adapters, fused into the denoiser's weights before a model is traced.

diffusers reads the files (its own layout, kohya's and others). PEFT turns them into layers, which are merged into the
weights and removed, so modules and names are those of the plain model. The part of a file that adapts text encoders is
recorded in ``LoadedModel.text_loras`` and fused when the text encoders are loaded (see ``text_loras``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, MissingError, UsageError, first_line
from dipgo_deploy.models.loaded_model import LoadedModel
from dipgo_deploy.models.lora_files import LORA_CLASSES, Adapter, LoraFile, lora_loader, read_lora
from dipgo_deploy.models.pipeline_folder import component_names
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

__all__ = ["with_loras"]


def with_loras(model: LoadedModel, loras: Sequence[LoraFile]) -> LoadedModel:
    """Fuse adapters into a model. Its module is changed in place, and so its digest changes.

    Every file is read before the first one is fused. If one cannot be fused, the module keeps its weights. A file may
    also adapt text encoders: if the model's pipeline has them, ``text_loras`` names them, otherwise there is a warning.

    Args:
        model: the model.
        loras: the adapters, which add up.

    Returns:
        The model with the same module and its ``text_loras``.

    Raises:
        InputError: a file is damaged or was made for another model.
        MissingError: peft is not installed.
        UsageError: diffusers reads no adapters for the model's class.
    """
    if not loras:
        return model
    if model.class_name not in LORA_CLASSES:
        known = ", ".join(LORA_CLASSES)
        raise UsageError(f"a LoRA for {model.class_name} cannot be read, only those for {known}: fuse it yourself")
    if find_spec("peft") is None:
        raise MissingError("a LoRA needs peft, which is not installed: pip install 'dipgo-deploy[lora]'")
    files = [_read_checked(model, lora.path) for lora in loras]
    adapters = [_denoiser_part(model, lora.path, file) for lora, file in zip(loras, files, strict=True)]
    text_loras = _text_loras(model, loras, files)
    _fuse(model, loras, adapters)
    return replace(model, text_loras=text_loras)


def _read_checked(model: LoadedModel, path: Path) -> Adapter:
    """A file whose tensors are finite."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path of the LoRA")
    with _fusing(model, str(path)):
        state, alphas = read_lora(path, model.class_name, model.config)
    if bad := next((name for name, tensor in state.items() if not tensor.isfinite().all()), None):
        raise InputError(f"{path} holds numbers in {bad} that are not finite: use an undamaged file")
    return state, alphas


def _denoiser_part(model: LoadedModel, path: Path, file: Adapter) -> Adapter:
    """The tensors and alphas of a file that adapt the denoiser."""
    state, alphas = file
    prefix = f"{model.component}."
    tensors = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not tensors:
        raise InputError(f"{path} adapts nothing of this {model.class_name}: use a LoRA that was made for it")
    return tensors, {name: alpha for name, alpha in (alphas or {}).items() if name.startswith(prefix)} or None


def _text_loras(
    model: LoadedModel, loras: Sequence[LoraFile], files: Sequence[Adapter]
) -> dict[str, tuple[LoraFile, ...]]:
    """The files that adapt each text encoder of the model's pipeline."""
    folder = model.folder
    is_pipeline = folder is not None and (folder / "model_index.json").is_file()
    components = component_names(folder) if folder is not None and is_pipeline else ()
    by_encoder: dict[str, tuple[LoraFile, ...]] = dict(model.text_loras)
    for lora, (state, _) in zip(loras, files, strict=True):
        for name in sorted({name.partition(".")[0] for name in state} - {model.component}):
            if name in components and hasattr(lora_loader(model.class_name), "load_lora_into_text_encoder"):
                by_encoder[name] = (*by_encoder.get(name, ()), lora)
            else:
                owner = folder or f"this {model.class_name}"
                text = f"{lora.path} also adapts {name}, which {owner} lacks: that part is ignored"
                warnings.warn(text, stacklevel=3)
    return by_encoder


def _fuse(model: LoadedModel, loras: Sequence[LoraFile], adapters: Sequence[Adapter]) -> None:
    """Make layers of all adapters, then merge them together. After any failure, the module keeps its weights."""
    module: Any = model.module
    names = [f"lora{index}" for index in range(len(loras))]
    try:
        for name, lora, (tensors, alphas) in zip(names, loras, adapters, strict=True):
            with _fusing(model, str(lora.path)), suppress_diffusers_logging(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT warns about a second adapter.
                module.load_lora_adapter(tensors, prefix=model.component, network_alphas=alphas, adapter_name=name)
        with _fusing(model, ", ".join(str(lora.path) for lora in loras)), _restored_on_error(module):
            module.set_adapters(names, [lora.scale for lora in loras])
            module.fuse_lora(safe_fusing=True)
    finally:
        module.unload_lora()
        module.requires_grad_(False)


@contextmanager
def _fusing(model: LoadedModel, files: str) -> Iterator[None]:
    """Turn every exception of diffusers and PEFT into an InputError that names the files."""
    try:
        yield
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{files} cannot be fused into this {model.class_name} ({line}): use its own") from None


@contextmanager
def _restored_on_error(module: nn.Module) -> Iterator[None]:
    """Restore the weights of adapted layers if one of them cannot be merged."""
    kept = {name: weight.detach().clone() for name, weight in module.named_parameters() if ".base_layer." in name}
    try:
        yield
    except Exception:
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if name in kept:
                    weight.copy_(kept[name])
        raise

"""LoRA adapters, fused into the denoiser's weights before a model is traced.

1. diffusers converts the files (its own layout, kohya's and others). PEFT turns them into layers and merges these.
2. This happens on a scratch copy of the module, which shares the weights of all layers that no file adapts. The model's
   own module never changes, so a file that cannot be fused changes nothing.
3. The result has the structure and names of the plain module: PEFT's layers stay behind in the scratch copy.
4. Layers of a file that the module lacks are left out with a warning, as diffusers does. If all are lacking, the file
   was made for another model and is refused.
5. The part of a file that adapts text encoders is recorded in ``LoadedModel.text_loras`` and fused when the text
   encoders are loaded (see ``text_loras``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, UsageError, first_line
from dipgo_deploy.models.loaded_model import LoadedModel
from dipgo_deploy.models.lora_files import LORA_CLASSES, Adapter, LoraFile, lora_loader, read_lora
from dipgo_deploy.models.pipeline_folder import component_names
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

__all__ = ["with_loras"]

Tensors = dict[str, torch.Tensor]


def with_loras(model: LoadedModel, loras: Sequence[LoraFile]) -> LoadedModel:
    """Fuse adapters into a model. The model itself and its module stay as they are.

    A file may also adapt text encoders: if the model's pipeline has them, ``text_loras`` names them, otherwise there is
    a warning. There is a warning, too, if a file adapts layers that the model lacks.

    Args:
        model: the model.
        loras: the adapters, which add up.

    Returns:
        The model with a new module, which shares all weights that no file adapts, and its ``text_loras``.

    Raises:
        InputError: a file is damaged, has a format that cannot be fused or was made for another model.
        MissingError: peft is not installed.
        UsageError: diffusers reads no adapters for the model's class, the model was loaded without weights, or its own
            behaviour refers to its module.
    """
    if not loras:
        return model
    if model.class_name not in LORA_CLASSES:
        known = ", ".join(LORA_CLASSES)
        raise UsageError(f"a LoRA for {model.class_name} cannot be read, only those for {known}: fuse it yourself")
    if not model.has_weights:
        raise UsageError(f"this {model.class_name} was loaded without weights, a LoRA needs them: load them too")
    if find_spec("peft") is None:
        raise MissingError("a LoRA needs peft, which is not installed: pip install 'dipgo-deploy[lora]'")
    adapters = [_read(model, lora.path) for lora in loras]
    parts = [_denoiser_part(model, lora.path, file) for lora, file in zip(loras, adapters, strict=True)]
    text_loras = _text_loras(model, loras, adapters)
    fused = replace(model, module=_fused(model, loras, adapters, parts), text_loras=text_loras)
    if changed := model.behaviour.differences(fused.behaviour):
        raise UsageError(
            f"this {model.class_name} cannot take a LoRA, for {changed[0]} refers to the module itself: fuse the LoRA "
            "before the module's behaviour is changed"
        )
    return fused


def _read(model: LoadedModel, path: Path) -> Adapter:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the safetensors file of the LoRA in it")
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path of the LoRA")
    with _fusing(model, str(path)), suppress_diffusers_logging():
        return read_lora(path, model.class_name, model.config)


def _denoiser_part(model: LoadedModel, path: Path, adapter: Adapter) -> Tensors:
    """The tensors of a file that fit layers of the denoiser, under PEFT's names."""
    tensors = _peft_names(adapter.part(model.component))
    if not tensors:
        raise InputError(f"{path} adapts nothing of this {model.class_name}: use a LoRA that was made for it")
    modules = {name for name, _ in model.module.named_modules()}
    fitting = {name: tensor for name, tensor in tensors.items() if _layer(name) in modules}
    kept = {_layer(name) for name in fitting}
    lost = _left_out(model.component, adapter, kept)
    if not fitting:
        raise InputError(
            f"{path} adapts {len(lost)} layers, none of which this {model.class_name} has, such as {lost[0]}: use a "
            "LoRA that was made for it"
        )
    if lost:
        text = (
            f"{path} adapts {len(adapter.layers)} layers, {len(lost)} of which this {model.class_name} lacks, such as "
            f"{lost[0]}: these are left out"
        )
        warnings.warn(text, stacklevel=3)
    return _padded(model, path, fitting)


def _peft_names(tensors: Tensors) -> Tensors:
    from diffusers.utils import convert_unet_state_dict_to_peft  # noqa: TID251 - the home of diffusers

    return tensors if any(".lora_A" in name for name in tensors) else convert_unet_state_dict_to_peft(tensors)


def _layer(name: str) -> str:
    return name.partition(".lora_")[0]


def _left_out(component: str, adapter: Adapter, kept: set[str]) -> list[str]:
    """The file's layers from which no layer of the denoiser and none of another component comes."""
    origins = {name: layers for name, layers in adapter.origins.items() if name.startswith(f"{component}.")}
    names = {name: next(iter(_peft_names({name: torch.empty(0)}))) for name in origins}
    used = {layer for name, layers in adapter.origins.items() if name not in origins for layer in layers}
    for name, layers in origins.items():
        if _layer(names[name].removeprefix(f"{component}.")) in kept:
            used |= layers
    return [layer for layer in adapter.layers if layer not in used]


def _padded(model: LoadedModel, path: Path, tensors: Tensors) -> Tensors:
    """The tensors, with zeros for the inputs that a model of more channels has, as diffusers pads them for FLUX."""
    padded = dict(tensors)
    for name in [name for name in tensors if name.endswith(".lora_A.weight") and "Flux" in model.class_name]:
        width, expected = tensors[name].shape[1], model.module.get_submodule(_layer(name)).in_features
        if width > expected:
            raise InputError(
                f"{path} widens {_layer(name)} from {expected} to {width} inputs, so it is a Control LoRA: fuse it in "
                "diffusers, save the pipeline, and give that folder"
            )
        padded[name] = nn.functional.pad(tensors[name], (0, expected - width))
    return padded


def _text_loras(
    model: LoadedModel, loras: Sequence[LoraFile], adapters: Sequence[Adapter]
) -> dict[str, tuple[LoraFile, ...]]:
    """The files that adapt each text encoder of the model's pipeline."""
    folder = model.folder
    is_pipeline = folder is not None and (folder / "model_index.json").is_file()
    components = component_names(folder) if folder is not None and is_pipeline else ()
    readable = lora_loader(model.class_name)._lora_loadable_modules
    by_encoder: dict[str, tuple[LoraFile, ...]] = dict(model.text_loras)
    for lora, adapter in zip(loras, adapters, strict=True):
        for name in sorted({name.partition(".")[0] for name in adapter.tensors} - {model.component}):
            if name in components and name in readable:
                by_encoder[name] = (*by_encoder.get(name, ()), lora)
            else:
                owner = folder or f"this {model.class_name}"
                lack = f"which {owner} lacks" if name not in components else "for which diffusers reads no LoRA"
                warnings.warn(f"{lora.path} also adapts {name}, {lack}: that part is ignored", stacklevel=3)
    return by_encoder


def _fused(
    model: LoadedModel, loras: Sequence[LoraFile], adapters: Sequence[Adapter], parts: Sequence[Tensors]
) -> nn.Module:
    """A copy of the module with all adapters fused, as ``load_lora_weights`` and ``fuse_lora`` fuse them."""
    shared: dict[int, Any] = {id(weight): nn.Parameter(weight.detach(), False) for weight in model.module.parameters()}
    shared |= {id(buffer): buffer.detach() for buffer in model.module.buffers()}
    scratch: Any = deepcopy(model.module, dict(shared))
    names = [f"lora{index}" for index in range(len(loras))]
    for name, lora, adapter, tensors in zip(names, loras, adapters, parts, strict=True):
        with _fusing(model, str(lora.path)), _quiet():
            scratch.load_lora_adapter(
                tensors,
                prefix=None,
                metadata=adapter.part_config(model.component),
                adapter_name=name,
                low_cpu_mem_usage=True,
            )
    with _fusing(model, ", ".join(str(lora.path) for lora in loras)), _quiet():
        scratch.set_adapters(names, [lora.scale for lora in loras])
        adapted = [weight for name, weight in scratch.named_parameters() if ".base_layer." in name]
        for weight in adapted:
            weight.data = weight.data.clone()  # PEFT merges in place
        scratch.fuse_lora()
    if not all(weight.isfinite().all() for weight in adapted):
        files = ", ".join(str(lora.path) for lora in loras)
        raise InputError(f"{files} makes weights of this {model.class_name} infinite: use a smaller scale")
    return deepcopy(model.module, dict(shared))


@contextmanager
def _quiet() -> Iterator[None]:
    with suppress_diffusers_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about a second adapter.
        yield


@contextmanager
def _fusing(model: LoadedModel, files: str) -> Iterator[None]:
    """Turn every exception of diffusers and PEFT into an InputError that names the files."""
    try:
        yield
    except DipgoError:
        raise
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{files} cannot be fused into this {model.class_name} ({line}): use its own") from None

"""Denoisers in folders as diffusers saves them: a whole pipeline, or the denoiser alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.models.loaded_model import DTYPES, LoadedModel
from dipgo_deploy.models.other_denoisers import other_denoisers_note
from dipgo_deploy.models.presets import PRESETS
from dipgo_deploy.models.presets.pipeline_check import check_pipeline, present_parts
from dipgo_deploy.models.sources.config_file import read_config
from dipgo_deploy.models.sources.foreign import check_library, what_it_is
from dipgo_deploy.models.sources.module import default_component, model_from_module
from dipgo_deploy.models.sources.pipeline_scheduler import pipeline_scheduler_config
from dipgo_deploy.models.sources.quantised import check_config_unquantised
from dipgo_deploy.models.sources.random import instantiate
from dipgo_deploy.models.sources.weight_files import check_weight_files
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

__all__ = ["load_folder"]

_EMBEDDER = "class_embedder"
_INDEX = "model_index.json"
_DENOISERS = ("unet", "transformer")

_AROUND = (
    "{name} is the denoiser of the pipeline {pipeline}, which gives scheduler, steps, guidance and other components: "
    "--sampler, --sampler-option, --steps and --guidance-layout change them"
)


def load_folder(folder: Path, dtype: str, variant: str | None = None, meta: bool = False) -> LoadedModel:
    """Load the denoiser of a folder, with the scheduler config and the class embedder next to it.

    A denoiser's folder inside its pipeline is loaded as the denoiser of that pipeline.

    Args:
        folder: a pipeline folder with ``model_index.json``, or a denoiser's folder with ``config.json``.
        dtype: a name of DTYPES.
        variant: variant of the weight files, such as ``fp16``.
        meta: load shapes without weights.

    Returns:
        The model.

    Raises:
        InputError: the folder holds no supported denoiser, no schedule can hold its pipeline's calls, or its files are
            missing, damaged or pickles.
    """
    if (pipeline := _pipeline_around(folder)) is not None:
        model = load_folder(pipeline, dtype, variant, meta)
        return replace(model, assumptions=(*model.assumptions, _AROUND.format(name=folder.name, pipeline=pipeline)))
    index = read_config(folder / _INDEX) if (folder / _INDEX).is_file() else None
    component = _component(folder, index)
    if index is not None:
        check_pipeline(index.get("_class_name"), present_parts(index), index)
    home = folder if index is None else folder / component
    config = read_config(home / "config.json")
    class_name = _class_name(config)
    if class_name not in PRESETS:
        raise InputError(f"{home} holds a {class_name}, supported are {', '.join(PRESETS)}: use another model")
    check_config_unquantised(config, home / "config.json")
    if meta:
        module = instantiate(config, DTYPES[dtype], device="meta")
    else:
        check_weight_files(home, class_name, variant)
        module = _from_pretrained("diffusers", class_name, home, DTYPES[dtype], variant)
    has_embedder = index is not None and _EMBEDDER in index
    note = other_denoisers_note(index or {}, component)
    return model_from_module(
        module,
        dtype=dtype,
        folder=folder,
        component=component,
        scheduler_config=pipeline_scheduler_config(folder, index, component, module),
        class_embedder=_class_embedder(folder / _EMBEDDER, meta) if has_embedder else None,
        assumptions=(note,) if note else (),
    )


def _class_name(config: Mapping[str, Any]) -> str:
    """The class that a config names, in the spelling of diffusers or of transformers."""
    architectures = config.get("architectures")
    named = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else None
    )
    return str(named or config.get("model_type") or "model without a class name")


def _pipeline_around(folder: Path) -> Path | None:
    """The pipeline folder whose denoiser ``folder`` is, or None."""
    home = folder.absolute()
    if home.name not in _DENOISERS or (home / _INDEX).is_file() or not (home.parent / _INDEX).is_file():
        return None
    entry = read_config(home.parent / _INDEX).get(home.name)
    return home.parent if isinstance(entry, list) and (home / "config.json").is_file() else None


def _component(folder: Path, index: Mapping[str, Any] | None) -> str:
    if index is None:
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has neither model_index.json nor config.json{what_it_is(folder)}")
        return default_component(str(read_config(folder / "config.json").get("_class_name", "")))
    for name in _DENOISERS:
        if name in index:
            check_library(folder, name, index)
            return name
    others = [name for name, entry in index.items() if isinstance(entry, list) and entry[-1] in PRESETS]
    remedy = f"give the denoiser's own folder {folder / others[0]}" if others else "give a diffusion pipeline"
    raise InputError(f"{folder / _INDEX} names neither unet nor transformer: {remedy}")


def _class_embedder(home: Path, meta: bool) -> nn.Module:
    from dipgo_deploy.models.class_embedder import ClassEmbedder

    config = read_config(home / "config.json")
    if meta:
        with torch.device("meta"):
            embedder: nn.Module = ClassEmbedder.from_config(config)
        return embedder
    return _from_pretrained(ClassEmbedder.__module__, ClassEmbedder.__name__, home)


def _from_pretrained(
    package: str, class_name: str, folder: Path, dtype: torch.dtype = torch.float32, variant: str | None = None
) -> nn.Module:
    try:
        # The weights file of a bundle also holds constants of its graphs, and diffusers warns about unused tensors.
        with suppress_diffusers_logging():
            model_class = getattr(import_module(package), class_name)
            module: nn.Module = model_class.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, variant=variant
            )
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{folder} cannot be loaded as {class_name} ({line}): restore its files") from None
    return module.eval().requires_grad_(False)

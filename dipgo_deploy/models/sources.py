"""Load a denoiser from wherever people have it.

Accepted: the name of a shipped reference model, a local diffusers pipeline folder, a bare denoiser folder, a checkpoint
of one file, a name on the model hub, or ``package.module:attribute``. Weights are safetensors, whole or in shards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError, first_line
from dipgo_deploy.models.from_python import is_python_name, model_from_python
from dipgo_deploy.models.hub import fetch, is_hub_name
from dipgo_deploy.models.loading import DTYPES, LoadedModel, model_from_module, usual_component
from dipgo_deploy.models.presets import PRESETS
from dipgo_deploy.models.quiet import quiet_diffusers
from dipgo_deploy.models.random_weights import instantiate
from dipgo_deploy.models.single_file import load_single_file
from dipgo_deploy.models.weight_files import PICKLES, check_weight_files, refuse_pickle

__all__ = ["REFERENCE_MODELS", "load_model"]

REFERENCE_MODELS = ("digits-unet", "digits-dit")
"""Names of the models that ship with the package."""

_REFERENCE = Path(__file__).parent / "reference"


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    revision: str | None = None,
    config: str | None = None,
    meta: bool = False,
) -> LoadedModel:
    """Load a model in ``dtype``; with ``meta`` its shapes alone.

    ``variant`` names the files of a folder, such as ``fp16``; ``revision`` a state of a model on the hub; ``config``
    the architecture of a checkpoint of one file, where its keys do not tell it (see ``read_random_config``).
    Raises InputError if there is no such model, it holds no supported denoiser or a file in it is damaged or a pickle,
    MissingError where the hub cannot give it, UsageError for an option that this kind of source has not.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)}")
    name = str(source)
    if not name:
        raise InputError(
            f"the name of the model is empty: give a diffusers folder or one of {', '.join(REFERENCE_MODELS)}"
        )
    folder = _REFERENCE / name if name in REFERENCE_MODELS else Path(source)
    is_file = folder.is_file() or folder.suffix in (".safetensors", *PICKLES)
    from_hub = not is_file and not folder.is_dir() and is_hub_name(name)
    given = {
        "variant": (variant, folder.is_dir() or from_hub),
        "revision": (revision, from_hub),
        "config": (config, is_file),
    }
    for option, (value, takes) in given.items():
        if value is not None and not takes:
            raise UsageError(f"--{option} {value} does not apply to {name}: leave it out")
    if is_file:
        return _from_file(folder, dtype, config, meta)
    if from_hub:
        folder = fetch(name, revision=revision, variant=variant, configs_only=meta)
    if folder.is_dir():
        return _from_folder(folder, dtype, variant, meta)
    if is_python_name(name):
        if meta:
            raise UsageError(f"--meta does not apply to {name}, which makes its own weights: leave it out")
        return model_from_python(name, dtype)
    raise InputError(f"no model {name!r}: give a diffusers folder or one of {', '.join(REFERENCE_MODELS)}")


def _from_file(path: Path, dtype: str, config: str | None, meta: bool) -> LoadedModel:
    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"{path} is no .safetensors file: give a checkpoint or a diffusers folder")
    module, known = load_single_file(path, DTYPES[dtype], config, meta)
    return model_from_module(
        module,
        dtype=dtype,
        scheduler_config=known.scheduler,
        latent_shape=known.latent_shape,
        text_tokens=known.text_tokens,
        guidance=known.guidance,
        steps=known.steps,
    )


def _from_folder(folder: Path, dtype: str, variant: str | None, meta: bool) -> LoadedModel:
    index = _read_config(folder / "model_index.json") if (folder / "model_index.json").is_file() else None
    component = _component(folder, index)
    home = folder / component if index is not None else folder
    config = _read_config(home / "config.json")
    class_name = str(config.get("_class_name"))
    if class_name not in PRESETS:
        raise InputError(f"{home} holds a {class_name}, supported are {', '.join(PRESETS)}: use another model")
    if meta:
        module = instantiate(config, DTYPES[dtype], device="meta")
    else:
        check_weight_files(home, class_name, variant)
        module = _from_pretrained("diffusers", class_name, home, DTYPES[dtype], variant)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    embedder = None
    if index is not None and "class_embedder" in index:
        embedder = _class_embedder(folder / "class_embedder", meta)
    return model_from_module(
        module,
        dtype=dtype,
        folder=folder,
        component=component,
        scheduler_config=_read_config(scheduler) if scheduler.is_file() else {},
        class_embedder=embedder,
    )


def _class_embedder(home: Path, meta: bool) -> nn.Module:
    from dipgo_deploy.models.class_embedder import ClassEmbedder

    config = _read_config(home / "config.json")
    if meta:
        with torch.device("meta"):
            embedder: nn.Module = ClassEmbedder.from_config(config)
        return embedder
    return _from_pretrained(ClassEmbedder.__module__, ClassEmbedder.__name__, home)


def _component(folder: Path, index: Mapping[str, Any] | None) -> str:
    if index is None:
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} has neither model_index.json nor config.json: give a diffusers folder")
        return usual_component(str(_read_config(folder / "config.json").get("_class_name", "")))
    for name in ("unet", "transformer"):
        if name in index:
            return name
    raise InputError(f"{folder / 'model_index.json'} names neither unet nor transformer: give a diffusion pipeline")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore the diffusers folder") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object: restore the diffusers folder")
    return config


def _from_pretrained(
    package: str, class_name: str, folder: Path, dtype: torch.dtype = torch.float32, variant: str | None = None
) -> nn.Module:
    from importlib import import_module

    # A bundle's weights file also holds the graphs' own constants, which diffusers would warn about.
    try:
        with quiet_diffusers():
            kind = getattr(import_module(package), class_name)
            model: nn.Module = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, variant=variant
            )
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{folder} cannot be loaded as {class_name} ({line}): restore its files") from None
    return model.eval().requires_grad_(False)

"""Load a denoiser from any supported source.

A source is one of these, tried in this order:

1. the name of a reference model that ships with the package
2. a checkpoint in a single safetensors file
3. ``owner/name`` on the model hub, if no folder has that name
4. a diffusers pipeline folder, or the folder of the denoiser alone
5. ``package.module:attribute`` in Python
"""

from __future__ import annotations

from pathlib import Path

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.loaded_model import LoadedModel, check_dtype
from dipgo_deploy.models.sources.folder import load_folder
from dipgo_deploy.models.sources.hub import fetch, is_hub_name
from dipgo_deploy.models.sources.links import refuse_broken_links
from dipgo_deploy.models.sources.python import is_python_name, model_from_python
from dipgo_deploy.models.sources.single_file import load_single_file
from dipgo_deploy.models.sources.weight_files import PICKLES

__all__ = ["REFERENCE_MODELS", "load_model"]

REFERENCE_MODELS = ("digits-unet", "digits-dit")
"""Names of the models that ship with the package."""

_REFERENCE = Path(__file__).parents[1] / "reference"


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    variant: str | None = None,
    revision: str | None = None,
    config: str | None = None,
    meta: bool = False,
) -> LoadedModel:
    """Load a model.

    Args:
        source: a reference model, a folder, a file, a hub name or a Python name, as listed above.
        dtype: a name of DTYPES.
        variant: variant of the files of a folder, such as ``fp16``.
        revision: a revision of a model on the hub.
        config: the architecture of a single-file checkpoint whose keys do not identify it. See
            ``read_random_config``.
        meta: load shapes without weights.

    Returns:
        The model.

    Raises:
        InputError: there is no such model, it is not a supported denoiser, or a file is damaged or a pickle.
        MissingError: the hub cannot provide the model.
        UsageError: one of the arguments does not apply to this kind of source.
    """
    check_dtype(dtype)
    name = str(source)
    choices = f"give a diffusers folder or one of {', '.join(REFERENCE_MODELS)}"
    if not name:
        raise InputError(f"the name of the model is empty: {choices}")
    path = _REFERENCE / name if name in REFERENCE_MODELS else Path(source)
    refuse_broken_links(path, variant)
    is_file = path.is_file() or path.suffix in (".safetensors", ".gguf", *PICKLES)
    on_hub = not is_file and not path.is_dir() and is_hub_name(name)
    _check_applies("variant", variant, name, path.is_dir() or on_hub)
    _check_applies("revision", revision, name, on_hub)
    _check_applies("config", config, name, is_file)
    if is_file:
        return load_single_file(path, dtype, config, meta)
    if on_hub:
        path = fetch(name, revision=revision, variant=variant, configs_only=meta)
    if path.is_dir():
        return load_folder(path, dtype, variant, meta)
    if is_python_name(name):
        if meta:
            raise UsageError(f"meta does not apply to {name}, which makes its own weights: leave it out")
        return model_from_python(name, dtype)
    raise InputError(f"there is no model {name!r}: {choices}")


def _check_applies(parameter: str, value: str | None, source: str, applies: bool) -> None:
    if value is not None and not applies:
        raise UsageError(f"{parameter} {value} does not apply to {source}: leave it out")

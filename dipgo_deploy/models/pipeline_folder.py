"""The components of a pipeline folder around its denoiser, by the names that `model_index.json` gives them.

Components run in PyTorch, in float32. Nothing is downloaded, no remote code is run, and only safetensors are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from dipgo_deploy.core.disk import path_inside, read_json
from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, first_line
from dipgo_deploy.models.sources.quantised import check_config_unquantised
from dipgo_deploy.models.sources.weight_files import only_variant
from dipgo_deploy.models.suppress_logging import suppress_transformers_logging

__all__ = [
    "VAE",
    "component_names",
    "load_module",
    "load_text_encoder",
    "load_tokenizer",
    "token_count",
    "using_component",
]

VAE = "vae"
"""Name of the component that decodes latents."""

_TOKENIZER = "tokenizer"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_TOKENS = 77
"""Length of the text sequence if the tokenizer records no limit: that of CLIP."""

_MAX_TOKENS = 4096
"""A tokenizer without a limit records a huge number, so a limit above this number is ignored."""

_DTYPE_ARGUMENT = {"diffusers": "torch_dtype", "transformers": "dtype"}
"""Name of the dtype argument of each library's loader."""

_COMPONENTS = {
    VAE: ("diffusers", "ModelMixin", "decode"),
    _TOKENIZER: ("transformers", "PreTrainedTokenizerBase", "encode"),
}
_TEXT_ENCODER = ("transformers", "PreTrainedModel", "forward")
"""Library of a component, the base of its class, and the method that it must have."""


def component_names(folder: Path) -> tuple[str, ...]:
    """The text encoders and the VAE of a pipeline folder, in the order in which they run."""
    index = _index(folder)
    return tuple(name for name in (*_TEXT_ENCODERS, VAE) if all(index.get(name) or [None]))


@contextmanager
def using_component(folder: Path, name: str) -> Iterator[tuple[Any, Path]]:
    """Give class and folder of a component, and turn any exception inside the context into an InputError.

    Args:
        folder: the pipeline's folder.
        name: the component's name in ``model_index.json``.

    Raises:
        MissingError: transformers is needed and not installed.
        InputError: the index lacks the component or names an unknown class, or the context raised.
    """
    library, class_name = _entry(folder, name)
    component_class = _component_class(name, library, class_name)
    home = path_inside(folder, name)
    try:
        with suppress_transformers_logging():
            yield component_class, home
    except DipgoError:
        raise
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{home} cannot be run as {class_name} ({line}): restore its files") from None


def load_module(component_class: Any, home: Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> Any:
    """Load a component's module.

    Args:
        component_class: its class, from `using_component`.
        home: its folder, from `using_component`.
        dtype: dtype to load in. ``auto`` keeps the dtype of the file.

    Returns:
        The module, in eval mode and without gradients.
    """
    if (home / "config.json").is_file():
        check_config_unquantised(read_json(home / "config.json"), home / "config.json")
    options = {_DTYPE_ARGUMENT[component_class.__module__.split(".")[0]]: dtype}
    module = component_class.from_pretrained(
        home, local_files_only=True, use_safetensors=True, variant=only_variant(home), **options
    )
    return module.eval().requires_grad_(False)


def token_count(folder: Path, name: str, module: Any) -> int:
    """Length of a text encoder's input: the tokenizer's limit, at most the number of the encoder's positions.

    Args:
        folder: the pipeline's folder.
        name: the text encoder's component name.
        module: its module.

    Returns:
        Number of tokens.
    """
    config = path_inside(folder, name.replace("text_encoder", "tokenizer")) / "tokenizer_config.json"
    limit = read_json(config).get("model_max_length") if config.is_file() else None
    if not (isinstance(limit, int) and 1 <= limit <= _MAX_TOKENS):
        limit = _TOKENS
    return min(limit, int(getattr(module.config, "max_position_embeddings", None) or _MAX_TOKENS))


def load_text_encoder(folder: Path) -> tuple[Any, int]:
    """Module and input length of the component ``text_encoder``. Raises as `using_component` does."""
    with using_component(folder, _TEXT_ENCODERS[0]) as (component_class, home):
        module = load_module(component_class, home)
        return module, token_count(folder, _TEXT_ENCODERS[0], module)


def load_tokenizer(folder: Path) -> Any:
    """The component ``tokenizer``. Raises as `using_component` does."""
    with using_component(folder, _TOKENIZER) as (component_class, home):
        return component_class.from_pretrained(home, local_files_only=True)


def _index(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / "model_index.json")


def _entry(folder: Path, name: str) -> list[str]:
    """Library and class of a component."""
    entry = _index(folder).get(name)
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        raise InputError(f"{folder / 'model_index.json'} has no entry {name}: use the whole pipeline")
    return entry


def _component_class(name: str, library: str, class_name: str) -> Any:
    """The class that the index names, if it is one of diffusers or transformers with the component's method."""
    expected, base, method = _COMPONENTS.get(name, _TEXT_ENCODER)
    if library != expected:
        raise InputError(f"{name} is a class of {library} instead of {expected}: put a {expected} model there")
    try:
        package = import_module(library)
    except ImportError:
        raise MissingError(f"{library} is not installed: pip install {library}") from None
    candidate = getattr(package, class_name, None)
    if not (
        isinstance(candidate, type) and issubclass(candidate, getattr(package, base)) and hasattr(candidate, method)
    ):
        raise InputError(f"{class_name} of {library} is not a known {name}: use another class")
    return candidate

"""The parts of a pipeline folder around its denoiser, by the names that `model_index.json` gives them.

They run in PyTorch, in float32; nothing is downloaded, no remote code is run, and only safetensors are read.
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
from dipgo_deploy.models.quiet import quiet_transformers
from dipgo_deploy.models.weight_files import only_variant

__all__ = [
    "VAE",
    "component_names",
    "load_module",
    "load_text_encoder",
    "load_tokenizer",
    "running",
    "token_count",
]

VAE = "vae"
"""Name of the component that decodes latents."""

_TOKENIZER = "tokenizer"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_TOKENS = 77
_MOST_TOKENS = 4096
"""Tokenizers without a limit of their own record an astronomic one."""

_DTYPE = {"diffusers": "torch_dtype", "transformers": "dtype"}
"""How each library calls the dtype to load in."""

_KINDS = {
    VAE: ("diffusers", "ModelMixin", "decode"),
    _TOKENIZER: ("transformers", "PreTrainedTokenizerBase", "encode"),
}
_TEXT_ENCODER = ("transformers", "PreTrainedModel", "forward")
"""Library of a component, the base of its class, and the method that makes it one."""


def component_names(folder: Path) -> tuple[str, ...]:
    """The text encoders and the VAE of a pipeline folder, in the order in which they run."""
    index = _index(folder)
    return tuple(name for name in (*_TEXT_ENCODERS, VAE) if all(index.get(name) or [None]))


@contextmanager
def running(folder: Path, name: str) -> Iterator[tuple[Any, Path]]:
    """Class and folder of a component, for work on it whose failures become one InputError.

    Raises MissingError where transformers is needed and absent, InputError where the index names something unknown.
    """
    library, class_name = _entry(folder, name)
    kind = _component_class(name, library, class_name)
    home = path_inside(folder, name)
    try:
        with quiet_transformers():
            yield kind, home
    except DipgoError:
        raise
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{home} cannot be run as {class_name} ({line}): restore its files") from None


def load_module(kind: Any, home: Path, dtype: torch.dtype | Literal["auto"] = torch.float32) -> Any:
    """A component's module in ``dtype``, by ``auto`` that of its file; ``kind`` and ``home`` are those of `running`."""
    wanted = {_DTYPE[kind.__module__.split(".")[0]]: dtype}
    variant = only_variant(home)
    module = kind.from_pretrained(home, local_files_only=True, use_safetensors=True, variant=variant, **wanted)
    return module.eval().requires_grad_(False)


def token_count(folder: Path, name: str, module: Any) -> int:
    """Length of the token sequence that the pipeline's tokenizer gives, as far as the model takes it."""
    config = path_inside(folder, name.replace("text_encoder", "tokenizer")) / "tokenizer_config.json"
    asked = read_json(config).get("model_max_length") if config.is_file() else None
    if not (isinstance(asked, int) and 1 <= asked <= _MOST_TOKENS):
        asked = _TOKENS
    return min(asked, int(getattr(module.config, "max_position_embeddings", None) or _MOST_TOKENS))


def load_text_encoder(folder: Path) -> tuple[Any, int]:
    """The module of the component ``text_encoder`` and the length of the sequence that it is given; see `running`."""
    with running(folder, _TEXT_ENCODERS[0]) as (kind, home):
        module = load_module(kind, home)
        return module, token_count(folder, _TEXT_ENCODERS[0], module)


def load_tokenizer(folder: Path) -> Any:
    """The component ``tokenizer``; see `running`."""
    with running(folder, _TOKENIZER) as (kind, home):
        return kind.from_pretrained(home, local_files_only=True)


def _index(folder: Path) -> Mapping[str, Any]:
    return read_json(folder / "model_index.json")


def _entry(folder: Path, name: str) -> list[str]:
    """Library and class of a component."""
    entry = _index(folder).get(name)
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        raise InputError(f"{folder / 'model_index.json'} names no {name}, one is wanted: use the whole pipeline")
    return entry


def _component_class(name: str, library: str, class_name: str) -> Any:
    """The class that the index names, if it is one of diffusers or transformers with the component's method."""
    wanted, base, method = _KINDS.get(name, _TEXT_ENCODER)
    if library != wanted:
        raise InputError(f"{name} is of {library}, one of {wanted} is wanted: put a {wanted} model there")
    try:
        package = import_module(library)
    except ImportError:
        raise MissingError(f"{library} is not installed: pip install {library}") from None
    kind = getattr(package, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, getattr(package, base)) and hasattr(kind, method)):
        raise InputError(f"{class_name} of {library} is no {name} that this program knows: use another one")
    return kind

"""Architectures with random weights: shipped configs of published models.

Speed, memory, MACs and exactness depend on the architecture alone, so they can be measured without a download. A config
is the diffusers config of a denoiser, together with the settings of its pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.core.files import check_document
from dipgo_deploy.models.loaded_model import DTYPES, LoadedModel, check_dtype
from dipgo_deploy.models.presets import PRESETS
from dipgo_deploy.models.sources.module import model_from_module

__all__ = [
    "RandomConfig",
    "instantiate",
    "load_random",
    "model_from_config",
    "read_random_config",
    "shipped_configs",
]

_FOLDER = Path(__file__).parents[1] / "configs"

_Count = Annotated[int, Field(ge=1)]
_LatentShape = Annotated[tuple[_Count, ...], Field(min_length=3, max_length=4)]


@dataclass(frozen=True)
class RandomConfig:
    """An architecture and the settings of its pipeline.

    Attributes:
        denoiser: diffusers' ``config.json`` of the denoiser.
        title: the published model's name, for display.
        scheduler: diffusers' ``scheduler_config.json``.
        guidance: the pipeline's guidance layout. None if only the denoiser's config is known.
        steps: the pipeline's number of steps. None as above.
        latent_shape: the latent of one image, if the denoiser's config has none.
        text_tokens: length of the text sequence, if it differs from the preset's length.
    """

    denoiser: Mapping[str, Any]
    title: str = ""
    scheduler: Mapping[str, Any] | None = None
    guidance: Guidance | None = None
    steps: _Count | None = None
    latent_shape: _LatentShape | None = None
    text_tokens: _Count | None = None


def shipped_configs() -> tuple[str, ...]:
    """Names of the configs that ship with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def read_random_config(name: str | Path) -> RandomConfig:
    """Read a config: a shipped one by its name, or a file with a denoiser's ``config.json`` or a RandomConfig.

    Raises InputError if there is no such file, if it is malformed or if its class is not supported.
    """
    path = _FOLDER / f"{name}.json" if str(name) in shipped_configs() else Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise InputError(
            f"there is no config {str(name)!r}: give a config.json or one of {', '.join(shipped_configs())}"
        )
    document = read_json(path)
    entries = document if "denoiser" in document else {"denoiser": document}
    if unknown := sorted(entries.keys() - {*inspect.signature(RandomConfig).parameters}):
        raise InputError(f"{path} holds an unknown entry {unknown[0]!r}: give a denoiser's config.json")
    denoiser = entries["denoiser"]
    if not isinstance(denoiser, dict) or denoiser.get("_class_name") not in [*PRESETS]:
        raise InputError(f"{path} names no supported denoiser class ({', '.join(PRESETS)}): give its config.json")
    return check_document(entries, RandomConfig, str(path))


def load_random(
    config: str | Path | RandomConfig, *, dtype: str = "float32", seed: int = 0, device: str = "cpu"
) -> LoadedModel:
    """Build an architecture with random weights, directly in ``dtype``. The same call gives the same weights.

    Args:
        config: the architecture, or a name or path for ``read_random_config``.
        dtype: a name of DTYPES.
        seed: of the weights.
        device: device of the weights. On ``meta`` the model has shapes but no weights.

    Returns:
        The model.

    Raises:
        InputError: there is no such config, or diffusers refuses it.
        UsageError: the dtype is unknown.
    """
    check_dtype(dtype)
    architecture = config if isinstance(config, RandomConfig) else read_random_config(config)
    module = instantiate(architecture.denoiser, DTYPES[dtype], seed, device)
    return model_from_config(module, architecture, dtype)


def model_from_config(module: nn.Module, architecture: RandomConfig, dtype: str) -> LoadedModel:
    """Wrap a module of ``architecture`` with the settings of its pipeline."""
    return model_from_module(
        module,
        dtype=dtype,
        scheduler_config=architecture.scheduler,
        latent_shape=architecture.latent_shape,
        text_tokens=architecture.text_tokens,
        guidance=architecture.guidance,
        steps=architecture.steps,
    )


def instantiate(config: Mapping[str, Any], dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> nn.Module:
    """Build the module of a diffusers ``config.json`` with random weights.

    Args:
        config: the denoiser's config, its class included.
        dtype: of the weights.
        seed: of the weights.
        device: of the weights. On ``meta`` there are no weights.

    Returns:
        The module.

    Raises:
        InputError: diffusers refuses the config.
    """
    import diffusers  # noqa: TID251 - the home of diffusers

    model_class = getattr(diffusers, config["_class_name"])
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(seed)
            module: nn.Module = model_class.from_config(dict(config))
    except Exception as error:
        line = first_line(error)
        raise InputError(
            f"{model_class.__name__} refuses this config ({line}): give one that diffusers wrote"
        ) from None
    finally:
        torch.set_default_dtype(default_dtype)
    return module

"""Architectures without their weights: shipped configs of published models, instantiated with random numbers.

Speed, memory, MACs and exactness depend on the architecture alone, so that all of them can be measured without a
download. A config is that of a denoiser as diffusers publishes it, with what its pipeline adds beside it.
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
from dipgo_deploy.core.errors import InputError, UsageError, first_line
from dipgo_deploy.core.files import check_document
from dipgo_deploy.models.loading import DTYPES, LoadedModel, model_from_module
from dipgo_deploy.models.presets import PRESETS

__all__ = ["RandomConfig", "instantiate", "load_random", "read_random_config", "shipped_configs"]

_FOLDER = Path(__file__).parent / "configs"

_Count = Annotated[int, Field(ge=1)]
_LatentShape = Annotated[tuple[_Count, ...], Field(min_length=3, max_length=4)]


@dataclass(frozen=True)
class RandomConfig:
    """An architecture and how its pipeline runs it.

    ``denoiser`` and ``scheduler`` are diffusers' own ``config.json`` and ``scheduler_config.json``; ``latent_shape`` is
    that of one image where the denoiser's config names none, ``text_tokens`` the length of its text; ``guidance`` and
    ``steps`` are the pipeline's usual ones, None where only a denoiser's config is known.
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
    """The shipped config of that name, or the one in a file: a denoiser's ``config.json``, or one like the shipped.

    Raises InputError where there is none, it is no such document or its class is not supported.
    """
    path = _FOLDER / f"{name}.json" if str(name) in shipped_configs() else Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise InputError(f"no config {str(name)!r}: give a config.json or one of {', '.join(shipped_configs())}")
    document = read_json(path)
    found = document if "denoiser" in document else {"denoiser": document}
    if odd := sorted(found.keys() - {*inspect.signature(RandomConfig).parameters}):
        raise InputError(f"{path} holds an unknown entry {odd[0]!r}: give a denoiser's config.json")
    if not isinstance(found["denoiser"], dict) or found["denoiser"].get("_class_name") not in [*PRESETS]:
        raise InputError(f"{path} names no supported denoiser class ({', '.join(PRESETS)}): give its config.json")
    return check_document(found, RandomConfig, str(path))


def load_random(
    config: str | Path | RandomConfig, *, dtype: str = "float32", seed: int = 0, device: str = "cpu"
) -> LoadedModel:
    """The architecture of ``config`` with weights drawn from ``seed``, built straight in ``dtype``.

    The same call gives the same weights. On the device ``meta`` it has shapes and no weights, and takes no memory.
    Raises InputError for a config that diffusers refuses, UsageError for an unknown dtype.
    """
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)}")
    known = config if isinstance(config, RandomConfig) else read_random_config(config)
    return model_from_module(
        instantiate(known.denoiser, DTYPES[dtype], seed, device),
        dtype=dtype,
        scheduler_config=known.scheduler,
        latent_shape=known.latent_shape,
        text_tokens=known.text_tokens,
        guidance=known.guidance,
        steps=known.steps,
    )


def instantiate(config: Mapping[str, Any], dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> nn.Module:
    """The module of a diffusers ``config.json`` in ``dtype``, its weights drawn from ``seed``; InputError as above."""
    import diffusers  # noqa: TID251 - the home of diffusers

    kind = getattr(diffusers, config["_class_name"])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(seed)
            module: nn.Module = kind.from_config(dict(config))
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{kind.__name__} refuses this config ({line}): give one that diffusers wrote") from None
    finally:
        torch.set_default_dtype(before)
    return module

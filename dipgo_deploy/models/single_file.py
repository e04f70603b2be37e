"""Checkpoints of one file, as image tools exchange them: read by diffusers' own loader, on configs that ship here.

diffusers would fetch a checkpoint's config from the hub; the shipped ones say the same, so that none is needed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError, first_line
from dipgo_deploy.models.quiet import quiet_diffusers
from dipgo_deploy.models.random_weights import RandomConfig, instantiate, read_random_config

__all__ = ["load_single_file"]

_CONFIGS = {
    "v1": "sd15",
    "v2": "sd21",
    "xl_base": "sdxl",
    "sd3": "sd3-medium",
    "sd35_medium": "sd35-medium",
    "sd35_large": "sd35-large",
    "flux-dev": "flux-dev",
    "flux-schnell": "flux-schnell",
    "wan-t2v-1.3B": "wan2.1-1.3b",
}
"""Shipped config of each kind of checkpoint that diffusers tells apart by its keys."""


def load_single_file(
    path: Path, dtype: torch.dtype, config: str | None = None, meta: bool = False
) -> tuple[nn.Module, RandomConfig]:
    """The denoiser in a checkpoint, and its config: ``config`` as for random weights, by default told from the keys.

    With ``meta`` the denoiser has shapes alone.

    Raises InputError where the file is damaged, of an unknown kind or does not fit the config.
    """
    import diffusers  # noqa: TID251 - the home of diffusers

    known = read_random_config(config or _kind_of(path))
    kind = getattr(diffusers, known.denoiser["_class_name"])
    if not hasattr(kind, "from_single_file"):
        raise UsageError(f"diffusers loads no {kind.__name__} from a single file: give its folder")
    if meta:
        return instantiate(known.denoiser, dtype, device="meta"), known
    try:
        with tempfile.TemporaryDirectory() as folder, quiet_diffusers():
            (Path(folder) / "config.json").write_text(json.dumps(dict(known.denoiser)), encoding="utf-8")
            module: nn.Module = kind.from_single_file(
                str(path), config=folder, torch_dtype=dtype, local_files_only=True
            )
    except Exception as error:
        # Weights that nothing was found for stay on the device meta, where PyTorch refuses to copy from.
        is_short = isinstance(error, NotImplementedError)
        line = "it lacks weights that the config asks for" if is_short else first_line(error)
        raise InputError(
            f"{path} cannot be loaded as {kind.__name__} ({line}): name its config.json with --config"
        ) from None
    return module, known


def _kind_of(path: Path) -> str:
    from diffusers.loaders.single_file_utils import (  # noqa: TID251 - the home of diffusers
        infer_diffusers_model_type,
    )

    try:
        found = infer_diffusers_model_type(_shapes(path))
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{path} is no readable safetensors checkpoint ({line}): restore it") from None
    if found not in _CONFIGS:
        known = ", ".join(_CONFIGS)
        raise InputError(f"{path} is a checkpoint of {found}, known are {known}: give a folder or --config")
    return _CONFIGS[found]


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint without their numbers: only its header is read."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

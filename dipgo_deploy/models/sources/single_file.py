"""Single-file checkpoints, the exchange format of image tools.

diffusers' own loader reads the file. It would fetch the config from the hub, so it is given a shipped config instead.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError, first_line
from dipgo_deploy.models.cast import keeps_float32
from dipgo_deploy.models.loaded_model import DTYPES, LoadedModel
from dipgo_deploy.models.sources.random import RandomConfig, instantiate, model_from_config, read_random_config
from dipgo_deploy.models.sources.weight_files import PICKLES, refuse_pickle
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

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
"""The shipped config of each kind of checkpoint that diffusers recognizes by its keys."""


def load_single_file(path: Path, dtype: str, config: str | None = None, meta: bool = False) -> LoadedModel:
    """Load the denoiser of a checkpoint.

    Args:
        path: a ``.safetensors`` file.
        dtype: a name of DTYPES.
        config: the architecture, as for ``read_random_config``. Default: recognized by the checkpoint's keys.
        meta: load shapes without weights.

    Returns:
        The model.

    Raises:
        InputError: the file is a pickle, is damaged, is of an unknown kind or does not fit the config.
        UsageError: diffusers cannot load this class from a single file.
    """
    import diffusers  # noqa: TID251 - the home of diffusers

    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"{path} is not a .safetensors file: give a checkpoint or a diffusers folder")
    architecture = read_random_config(config or _recognized_config(path))
    model_class = getattr(diffusers, architecture.denoiser["_class_name"])
    if not hasattr(model_class, "from_single_file"):
        raise UsageError(f"diffusers cannot load a {model_class.__name__} from a single file: give its folder")
    if meta:
        module = instantiate(architecture.denoiser, DTYPES[dtype], device="meta")
    else:
        module = _read_checkpoint(path, model_class, architecture, DTYPES[dtype])
    return model_from_config(module, architecture, dtype)


def _read_checkpoint(path: Path, model_class: type, architecture: RandomConfig, dtype: torch.dtype) -> nn.Module:
    # What stays in float32 must not be rounded on the way.
    read = torch.float32 if keeps_float32(model_class, dtype) else dtype
    try:
        with tempfile.TemporaryDirectory() as folder, suppress_diffusers_logging():
            (Path(folder) / "config.json").write_text(json.dumps(dict(architecture.denoiser)), encoding="utf-8")
            module: nn.Module = model_class.from_single_file(  # type: ignore[attr-defined]
                str(path), config=folder, torch_dtype=read, local_files_only=True
            )
    except Exception as error:
        # Weights that the file lacks stay on the device meta, from which PyTorch cannot copy.
        lacks_weights = isinstance(error, NotImplementedError)
        line = "it lacks weights that the config requires" if lacks_weights else first_line(error)
        raise InputError(
            f"{path} cannot be loaded as {model_class.__name__} ({line}): give its config.json as config"
        ) from None
    return module


def _recognized_config(path: Path) -> str:
    from diffusers.loaders.single_file_utils import (  # noqa: TID251 - the home of diffusers
        infer_diffusers_model_type,
    )

    try:
        kind = infer_diffusers_model_type(_shapes(path))
    except Exception as error:
        line = first_line(error)
        raise InputError(f"{path} is not a readable safetensors checkpoint ({line}): restore it") from None
    if kind not in _CONFIGS:
        raise InputError(f"{path} is a checkpoint of {kind}, known are {', '.join(_CONFIGS)}: give a folder or config")
    return _CONFIGS[kind]


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint on the device meta. Only the header of the file is read."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

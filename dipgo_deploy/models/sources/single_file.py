"""Single-file checkpoints, the exchange format of image tools.

diffusers' own loader reads the file. It would fetch the config from the hub, so it is given a shipped config instead.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError, first_line
from dipgo_deploy.models.cast import cast_in_place, keeps_float32
from dipgo_deploy.models.loaded_model import DTYPES, LoadedModel
from dipgo_deploy.models.sources.checkpoint import check_denoiser, check_fits, published_config, recognized_config
from dipgo_deploy.models.sources.prediction import is_sd2_base, with_scheduler
from dipgo_deploy.models.sources.quantised import check_unquantised
from dipgo_deploy.models.sources.random import RandomConfig, model_from_config, read_random_config, shipped_configs
from dipgo_deploy.models.sources.safetensors_header import read_header
from dipgo_deploy.models.sources.weight_files import PICKLES, refuse_pickle
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

__all__ = ["load_single_file"]

_FOREIGN = {
    ".gguf": "a GGUF file, whose weights are quantised: give the model with its unquantised weights",
    ".onnx": "an ONNX graph: give the diffusers folder that it was exported from",
    ".msgpack": "a file of Flax weights: save the model as safetensors",
    ".h5": "a file of TensorFlow weights: save the model as safetensors",
}
"""Files of other libraries by suffix."""


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
        InputError: the file is a pickle, is damaged or quantised, is of an unknown kind or does not fit the config.
        UsageError: diffusers cannot load this class from a single file.
    """
    import diffusers  # noqa: TID251 - the home of diffusers

    _check_suffix(path)
    own = None if config is None else read_random_config(config)
    if own is not None and not hasattr(getattr(diffusers, own.denoiser["_class_name"]), "from_single_file"):
        name = own.denoiser["_class_name"]
        raise UsageError(f"diffusers cannot load a {name} from a single file: give its folder")
    header = read_header(path)
    check_unquantised(path, header)
    check_denoiser(path, header)
    published = published_config(header, own.denoiser) if own else recognized_config(path, header)
    if published == "sd21" and is_sd2_base(path, header):
        published = "sd21-base"
    architecture = own or read_random_config(published)
    is_users = own is not None and config not in shipped_configs()
    architecture, assumptions = with_scheduler(path, header, architecture, published, is_users)
    module = check_fits(path, header, architecture.denoiser)
    if meta:
        module = cast_in_place(module, DTYPES[dtype])
    else:
        module = _read_checkpoint(path, type(module), architecture, DTYPES[dtype])
    return replace(model_from_config(module, architecture, dtype), assumptions=assumptions)


def _check_suffix(path: Path) -> None:
    """Raise InputError for anything but a safetensors file."""
    if path.suffix in PICKLES:
        refuse_pickle(path)
    if path.suffix in _FOREIGN:
        raise InputError(f"{path} is {_FOREIGN[path.suffix]}")
    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"{path} is not a .safetensors file: give a checkpoint or a diffusers folder")


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
    # diffusers notes that everything is on one device. A module from a folder has no such note.
    vars(module).pop("hf_device_map", None)
    return module

"""Checks of a folder's weight files before diffusers opens them. Only safetensors are accepted.

1. A pickle runs code when it is opened, so pickles are refused.
2. The names of shards come from a file that others wrote, so a shard must be a file in the same folder. It may be a
   symbolic link, because every file in the hub's cache is a symbolic link.
"""

from __future__ import annotations

import re
from pathlib import Path

from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.errors import InputError

__all__ = ["PICKLES", "check_weight_files", "only_variant", "refuse_pickle"]

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Suffixes of files that PyTorch unpickles."""

_STEM = "diffusion_pytorch_model"
_NAMED = re.compile(r"(model|diffusion_pytorch_model)(\.(?P<variant>[\w-]+?))?(-\d+-of-\d+)?\.safetensors")
"""How diffusers and transformers name weight files: whole or in shards, plain or of a variant."""


def check_weight_files(folder: Path, class_name: str, variant: str | None) -> None:
    """Check that a folder holds safetensors of a denoiser, every shard included.

    Args:
        folder: the denoiser's folder.
        class_name: the denoiser's class, for the command that converts a pickle.
        variant: variant of the files, such as ``fp16``. None means plain files.

    Raises:
        InputError: the files are missing, of another variant or pickles, or the index of the shards is malformed.
    """
    stem = _STEM if variant is None else f"{_STEM}.{variant}"
    if (folder / f"{stem}.safetensors").is_file():
        return
    infix = "" if variant is None else f".{variant}"
    indexes = (f"{_STEM}.safetensors.index{infix}.json", f"{stem}.safetensors.index.json")
    index = next((folder / name for name in indexes if (folder / name).is_file()), None)
    if index is not None:
        _check_shards(index)
        return
    if pickles := sorted(path for path in folder.glob(f"{_STEM}*") if PICKLES[0] == path.suffix):
        refuse_pickle(pickles[0], class_name)
    if variant is not None and (folder / f"{_STEM}.safetensors").is_file():
        raise InputError(f"{folder} has no {stem}.safetensors, found {_STEM}.safetensors: leave variant out")
    variants = sorted({path.name.split(".")[1] for path in folder.glob(f"{_STEM}.*.safetensors")} - {"safetensors"})
    files = f"variants {', '.join(variants)}" if variants else "no safetensors"
    remedy = f"use variant {variants[0]}" if variants else "save the model with safetensors"
    raise InputError(f"{folder} has no {stem}.safetensors, found {files}: {remedy}")


def refuse_pickle(path: Path, class_name: str = "UNet2DConditionModel") -> None:
    """Raise InputError with the command that converts the file, for users who trust it."""
    if path.suffix == ".bin":
        code = f"{class_name}.from_pretrained('{path.parent}', use_safetensors=False).save_pretrained('{path.parent}')"
    else:
        code = f"{class_name}.from_single_file('{path}').save_pretrained('{path.with_suffix('')}')"
    raise InputError(
        f"{path} is a pickle, which can run code when opened, instead of safetensors: if you trust it, convert it by "
        f'python -c "from diffusers import {class_name}; {code}"'
    )


def only_variant(folder: Path) -> str | None:
    """The variant of a component's folder without plain weights, such as ``fp16``. None if there are plain weights.

    diffusers and transformers must be told the variant, and a bundle does not record it for text encoders and VAE.
    """
    names = [_NAMED.fullmatch(path.name) for path in folder.glob("*.safetensors")]
    variants = {match["variant"] for match in names if match}
    return min(variants, default=None) if None not in variants else None


def _check_shards(index: Path) -> None:
    shards = read_json(index).get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise InputError(f"{index} does not map weights to shards: restore the diffusers folder")
    for name in sorted(set(shards.values())):
        if name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise InputError(
                f"{index} names the shard {name!r}, which is not a plain file name: do not use this folder"
            )
        shard = index.parent / name
        if shard.suffix != ".safetensors" or not shard.is_file():
            raise InputError(
                f"{index} names the shard {name}, which is not a safetensors file in the folder: restore it"
            )

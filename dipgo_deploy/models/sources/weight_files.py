"""Checks of a folder's weight files before diffusers opens them. Only safetensors are accepted.

1. A pickle runs code when it is opened, so pickles are refused.
2. The names of shards come from a file that others wrote, so a shard must be a file in the same folder. It may be a
   symbolic link, because every file in the hub's cache is a symbolic link.
3. Weights that another library quantised are refused, whether the folder's config says so or not.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.sources.quantised import check_unquantised
from dipgo_deploy.models.sources.safetensors_header import read_header

__all__ = ["PICKLES", "check_weight_files", "only_variant", "refuse_pickle"]

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Suffixes of files that PyTorch unpickles."""

_STEM = "diffusion_pytorch_model"
_NAMED = re.compile(r"(model|diffusion_pytorch_model)(\.(?P<variant>[\w-]+?))?(?P<shard>-\d+-of-\d+)?\.safetensors")
"""How diffusers and transformers name weight files: whole or in shards, plain or of a variant."""

_INDEX = re.compile(rf"{_STEM}\.safetensors\.index(\.(?P<variant>[\w-]+))?\.json")
"""How diffusers names the index of shards."""

_UNREAD_INDEX = re.compile(rf"{_STEM}\.(?P<variant>[\w-]+)\.safetensors\.index\.json")
"""How other tools name the index of a variant's shards. diffusers does not read this name."""


def check_weight_files(folder: Path, class_name: str, variant: str | None) -> None:
    """Check that a folder holds safetensors of a denoiser, every shard included.

    Args:
        folder: the denoiser's folder.
        class_name: the denoiser's class, for the command that converts a pickle.
        variant: variant of the files, such as ``fp16``. None means plain files.

    Raises:
        InputError: the files are missing, damaged, quantised, of another variant or pickles, or the index of the
            shards is malformed.
    """
    found = _weight_files(folder)
    if variant in found:
        for path in [found[variant]] if found[variant].suffix == ".safetensors" else _shards(found[variant]):
            _check_header(path)
        return
    if pickles := sorted(path for path in folder.glob(f"{_STEM}*") if PICKLES[0] == path.suffix):
        refuse_pickle(pickles[0], class_name)
    if flax := sorted(folder.glob("*.msgpack")):
        raise InputError(f"{flax[0]} is a file of Flax weights, not of safetensors: save the model as safetensors")
    _refuse_unread_index(folder, variant, found)
    stem = _STEM if variant is None else f"{_STEM}.{variant}"
    if None in found:
        raise InputError(f"{folder} has no {stem}.safetensors, found {_STEM}.safetensors: leave variant out")
    variants = sorted(name for name in found if name is not None)
    files = f"variants {', '.join(variants)}" if variants else "no safetensors"
    remedy = f"use variant {variants[0]}" if variants else "save the model with safetensors"
    raise InputError(f"{folder} has no {stem}.safetensors, found {files}: {remedy}")


def _weight_files(folder: Path) -> dict[str | None, Path]:
    """The file of each variant of a denoiser's weights, or the index of its shards. None is the plain variant.

    Shards without an index count for nothing, because diffusers cannot load them.
    """
    found: dict[str | None, Path] = {}
    for path in sorted(folder.glob(f"{_STEM}*")):
        index, file = _INDEX.fullmatch(path.name), _NAMED.fullmatch(path.name)
        if index:
            found.setdefault(index["variant"], path)
        elif file and not file["shard"]:
            found[file["variant"]] = path
    return found


def _refuse_unread_index(folder: Path, variant: str | None, found: Collection[str | None]) -> None:
    """Raise InputError for an index that would be meant if diffusers read its name."""
    for path in sorted(folder.glob(f"{_STEM}.*.index.json")):
        match = _UNREAD_INDEX.fullmatch(path.name)
        if match and (match["variant"] == variant or (variant is None and not found)):
            new = f"{_STEM}.safetensors.index.{match['variant']}.json"
            remedy = "" if variant else f", and use variant {match['variant']}"
            raise InputError(f"{path} is a name of an index that diffusers does not read: rename it to {new}{remedy}")


def _check_header(path: Path) -> None:
    """Refuse quantised weights. A damaged file is left to the loader, which knows the class."""
    try:
        header = read_header(path)
    except InputError:
        return
    check_unquantised(path, header)


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


def _shards(index: Path) -> list[Path]:
    """The shards that an index names, each checked to be a plain file name of a safetensors file."""
    shards = read_json(index).get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise InputError(f"{index} does not map weights to shards: restore the diffusers folder")
    return [_shard(index, name) for name in sorted(set(shards.values()))]


def _shard(index: Path, name: str) -> Path:
    if name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
        raise InputError(f"{index} names the shard {name!r}, which is not a plain file name: do not use this folder")
    shard = index.parent / name
    if shard.suffix != ".safetensors" or not shard.is_file():
        raise InputError(f"{index} names the shard {name}, which is not a safetensors file in the folder: restore it")
    return shard

"""What weights a folder holds, looked at before diffusers opens any: safetensors alone, whole or in shards.

A pickle runs code when it is opened, so that none ever is. A shard's name comes from a file that others wrote, so that
it has to be that of a file in the same folder. There it may be a link: in the hub's cache every file is one.
"""

from __future__ import annotations

import re
from pathlib import Path

from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.errors import InputError

__all__ = ["PICKLES", "check_weight_files", "only_variant", "refuse_pickle"]

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Endings of files that PyTorch unpickles."""

_STEM = "diffusion_pytorch_model"
_NAMED = re.compile(r"(model|diffusion_pytorch_model)(\.(?P<variant>[\w-]+?))?(-\d+-of-\d+)?\.safetensors")
"""How diffusers and transformers name weights: whole or in shards, plain or of a variant."""


def check_weight_files(folder: Path, class_name: str, variant: str | None) -> None:
    """InputError unless ``folder`` holds safetensors of ``variant`` (None: the plain ones), every shard included."""
    stem = _STEM if variant is None else f"{_STEM}.{variant}"
    if (folder / f"{stem}.safetensors").is_file():
        return
    infix = "" if variant is None else f".{variant}"
    named = (f"{_STEM}.safetensors.index{infix}.json", f"{stem}.safetensors.index.json")
    index = next((folder / name for name in named if (folder / name).is_file()), None)
    if index is not None:
        _check_shards(index)
        return
    if pickles := sorted(path for path in folder.glob(f"{_STEM}*") if PICKLES[0] == path.suffix):
        refuse_pickle(pickles[0], class_name)
    if variant is not None and (folder / f"{_STEM}.safetensors").is_file():
        raise InputError(f"{folder} has no {stem}.safetensors, found {_STEM}.safetensors: leave --variant out")
    variants = sorted({path.name.split(".")[1] for path in folder.glob(f"{_STEM}.*.safetensors")} - {"safetensors"})
    found = f"variants {', '.join(variants)}" if variants else "no safetensors"
    remedy = f"ask for --variant {variants[0]}" if variants else "save the model with safetensors"
    raise InputError(f"{folder} has no {stem}.safetensors, found {found}: {remedy}")


def refuse_pickle(path: Path, class_name: str = "UNet2DConditionModel") -> None:
    """InputError with the line that converts it, for someone who trusts the file."""
    if path.suffix == ".bin":
        act = f"{class_name}.from_pretrained('{path.parent}', use_safetensors=False).save_pretrained('{path.parent}')"
    else:
        act = f"{class_name}.from_single_file('{path}').save_pretrained('{path.with_suffix('')}')"
    raise InputError(
        f"{path} is a pickle, which runs code when opened, and safetensors are wanted: convert it if you trust it, by "
        f'python -c "from diffusers import {class_name}; {act}"'
    )


def only_variant(folder: Path) -> str | None:
    """The variant that a component's folder holds in the place of plain weights, such as ``fp16``; None else.

    Reading one needs its name, and whoever reads a bundle's text encoders and VAE was not told it.
    """
    names = [_NAMED.fullmatch(path.name) for path in folder.glob("*.safetensors")]
    variants = {match["variant"] for match in names if match}
    return min(variants, default=None) if None not in variants else None


def _check_shards(index: Path) -> None:
    shards = read_json(index).get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise InputError(f"{index} maps no weights to shards: restore the diffusers folder")
    for name in sorted(set(shards.values())):
        if name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
            raise InputError(f"{index} names the shard {name!r}, which is no plain file name: do not use this folder")
        shard = index.parent / name
        if shard.suffix != ".safetensors" or not shard.is_file():
            raise InputError(f"{index} names the shard {name}, which is no safetensors file there: restore it")

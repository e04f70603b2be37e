"""Links in a model's folder that lead nowhere are named, before a loader misses the files behind them.

diffusers fails with "no such file", or takes a folder for the name of a model on the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dipgo_deploy.core.disk import missing_text, read_json
from dipgo_deploy.core.errors import InputError

__all__ = ["refuse_broken_links"]

_INDEX = "model_index.json"
_STEM = "diffusion_pytorch_model"


def refuse_broken_links(source: Path, variant: str | None = None) -> None:
    """Raise InputError if a link that a model needs leads nowhere or back to itself.

    Args:
        source: the path of a model. Files of other variants or of other libraries may be broken links.
        variant: variant of the weight files.
    """
    for path in (source, *_needed(source, variant)):
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path} {missing_text(path)}: restore it")


def _needed(folder: Path, variant: str | None) -> Iterator[Path]:
    if not folder.is_dir():
        return
    yield folder / _INDEX
    yield from _files(folder, variant)
    try:
        index = read_json(folder / _INDEX)
    except InputError:  # Whoever reads the index refuses it, in words of its own.
        return
    for name, entry in index.items():
        if isinstance(entry, list) and entry != [None, None]:
            yield folder / name
            yield from _files(folder / name, variant)


def _files(folder: Path, variant: str | None) -> Iterator[Path]:
    """The config and the weights of a component, whole or in shards, of one variant."""
    yield from (folder / name for name in ("config.json", "scheduler_config.json", f"{_STEM}.safetensors.index.json"))
    infix = "" if variant is None else f".{variant}"
    yield folder / f"{_STEM}{infix}.safetensors"
    yield from folder.glob(f"{_STEM}{infix}-*-of-*.safetensors")

"""A folder, written under a temporary name and put in place whole: an older one stays until then."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError

__all__ = ["staged"]


@contextmanager
def staged(out: Path, label: str = "new") -> Iterator[Path]:
    """An empty folder beside ``out`` that takes its place at the end of the context.

    After an exception it is gone, with the folders above it that were made for it. ``label`` is part of its name.
    Engines of an older bundle at ``out`` move to the new one, unrecorded: build-engine knows those that still fit.
    Raises InputError where the folder cannot be made, OSError where it cannot be put in place.
    """
    out = out.absolute()
    temporary, made = _made(out, label)
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _drop_empty(made)


def _made(out: Path, label: str) -> tuple[Path, list[Path]]:
    """The temporary folder, and the folders above ``out`` that were made for it, the innermost first."""
    made: list[Path] = []
    try:
        made = [parent for parent in out.parents if not parent.exists()]
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.{label}.")), made
    except OSError as error:
        _drop_empty(made)
        reason = error.strerror or error
        raise InputError(f"{out} cannot be written ({reason}): choose another place") from None


def _drop_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # the first that is not empty ends it: after success none is
        for folder in folders:
            folder.rmdir()


def _put_in_place(temporary: Path, out: Path) -> None:
    """Rename, setting an older bundle aside until the new one stands."""
    if not out.exists():
        temporary.rename(out)
        return
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old.")) / "bundle"
    out.rename(aside)
    try:
        temporary.rename(out)
    except BaseException:
        aside.rename(out)
        aside.parent.rmdir()
        raise
    _keep_engines(aside, out)
    shutil.rmtree(aside.parent)


def _keep_engines(old: Path, new: Path) -> None:
    for engines in old.glob(f"*/{ENGINES_FOLDER}"):
        place = new / engines.parent.name / ENGINES_FOLDER
        if engines.is_dir() and not engines.is_symlink() and place.parent.is_dir() and not place.exists():
            engines.rename(place)

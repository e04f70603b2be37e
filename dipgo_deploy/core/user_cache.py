"""The user's cache: what it holds, and how it is cleared. Everything in it can be made again.

1. ``traces``: one folder for each traced model and block set.
2. ``engines``: notes of the engines that this machine built, which are trusted for that reason, and timing caches.
   The engines themselves lie in bundles.
3. ``digests``: digests of large files, so that a load does not read them again.
4. ``teachers``: trajectories that learned samplers are fitted to.
5. Locks are empty files. They stay, because another process may hold one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipgo_deploy.core.disk import cache_folder
from dipgo_deploy.core.errors import InputError

__all__ = ["CACHE_KINDS", "CacheEntry", "CacheKind", "cache_entries", "clear_cache", "mark_used"]

CacheKind = Literal["traces", "engines", "digests", "teachers"]
"""What an entry of the cache is for."""

CACHE_KINDS: tuple[CacheKind, ...] = ("traces", "engines", "digests", "teachers")


@dataclass(frozen=True)
class CacheEntry:
    """One file or folder of the cache.

    Attributes:
        kind: what it is for.
        path: the file or folder.
        what: a description.
        bytes: its size on the disk.
        used: time of the last use, in seconds since 1970.
    """

    kind: CacheKind
    path: Path
    what: str
    bytes: int
    used: float


def mark_used(path: Path) -> None:
    """Note that an entry of the cache was used now. A cache that is read-only is no error."""
    with suppress(OSError):
        os.utime(path)


def cache_entries(kinds: Sequence[CacheKind] = CACHE_KINDS) -> tuple[CacheEntry, ...]:
    """The entries of the user's cache, kind by kind, the last used first.

    Args:
        kinds: the kinds to list.

    Returns:
        The entries. Locks and temporary files are left out.
    """
    entries = [entry for kind in kinds for entry in _entries_of(kind)]
    return tuple(sorted(entries, key=lambda entry: (CACHE_KINDS.index(entry.kind), -entry.used)))


def clear_cache(kinds: Sequence[CacheKind] = CACHE_KINDS) -> tuple[CacheEntry, ...]:
    """Remove all entries of some kinds.

    An entry is moved aside before its files are deleted, so that no other process finds half an entry.

    Args:
        kinds: the kinds to clear.

    Returns:
        The entries that were removed.

    Raises:
        InputError: the cache cannot be written.
    """
    entries = cache_entries(kinds)
    if not entries:
        return ()
    try:
        with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="cleared_") as aside:
            for index, entry in enumerate(entries):
                with suppress(FileNotFoundError):
                    shutil.move(entry.path, Path(aside) / str(index))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{cache_folder()} cannot be cleared ({reason}): check its permissions") from None
    return entries


def _entries_of(kind: CacheKind) -> Iterator[CacheEntry]:
    folder = cache_folder() / kind
    if not folder.is_dir():
        return
    paths = [folder, folder / "trusted"] if kind == "engines" else [folder]
    for path in (path for parent in paths if parent.is_dir() for path in parent.iterdir()):
        if path.name != "trusted":
            with suppress(FileNotFoundError):  # Another process may clear the cache too.
                yield _entry(kind, path)


def _entry(kind: CacheKind, path: Path) -> CacheEntry:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    return CacheEntry(kind, path, _what(kind, path), size, path.stat().st_mtime)


def _what(kind: CacheKind, path: Path) -> str:
    if kind == "traces":
        blocks = _document(path / "blocks.json")
        return f"{blocks['model_class']} at {blocks['granularity']}" if "granularity" in blocks else "unfinished trace"
    if kind == "teachers":
        return "trajectories"
    if path.suffix == ".timing":
        return f"timing cache of {path.stem}"
    if path.parent.name == "trusted":
        return f"engine {path.name[:12]} was built here"
    noted = str(_document(path).get("path", "unreadable note"))
    return noted if Path(noted).exists() else f"{noted} (gone)"


def _document(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}

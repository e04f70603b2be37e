"""Digests: the sha256 of files, their records in a manifest, and digests that the user's cache remembers.

A digest is remembered with the size, the times, the inode and the device of its file. A file that changed in any of
them is read again. A file that changed within the last moment is not remembered, because clocks of file systems tick
in milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from dipgo_deploy.core.bundle import BUNDLE_FILE, FileRecord
from dipgo_deploy.core.disk import cache_folder, missing_text, write_atomic
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.user_cache import mark_used

__all__ = ["DIGESTS_FOLDER", "check_digest", "records_of", "remembered_sha256", "sha256_of"]

DIGESTS_FOLDER = "digests"
"""Folder of remembered digests in the user's cache."""

_SETTLED_NS = 100_000_000
"""Age in nanoseconds from which a further change of a file is sure to change its times."""


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Hex sha256 of a file. The file is not read again while size, times and inode are those of the last time."""
    state, note = _state(path), _note(path)
    with suppress(OSError, ValueError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("state") == state and isinstance(known.get("sha256"), str):
            mark_used(note)
            return str(known["sha256"])
    digest = sha256_of(path)
    changed_ns = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    if _state(path) == state and time.time_ns() - changed_ns > _SETTLED_NS:
        with suppress(InputError):  # A cache that cannot be written costs time and nothing else.
            write_atomic(note, json.dumps({"path": str(path.absolute()), "state": state, "sha256": digest}) + "\n")
    return digest


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _note(path: Path) -> Path:
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32]
    return cache_folder() / DIGESTS_FOLDER / f"{name}.json"


def check_digest(
    path: Path, record: FileRecord, whole: bool = True, *, remember: bool = False, remedy: str = "re-export the bundle"
) -> None:
    """Compare a file, or the file that a link leads to, with its record.

    Args:
        path: the file.
        record: size and sha256.
        whole: whether to compare the sha256 too.
        remember: whether a digest of the user's cache will do.
        remedy: what to do about a difference.

    Raises:
        InputError: the file is missing, is not a regular file, or differs from its record.
    """
    if not path.is_file():
        raise InputError(f"{path} {missing_text(path)}: {remedy}")
    size = path.stat().st_size
    if size != record.bytes:
        raise InputError(f"{path} has {size} bytes, recorded are {record.bytes}: {remedy}")
    if whole and (remembered_sha256(path) if remember else sha256_of(path)) != record.sha256:
        raise InputError(f"{path} differs from its recorded sha256 {record.sha256[:12]}: {remedy}")


def records_of(folder: Path) -> tuple[FileRecord, ...]:
    """Records of every regular file below ``folder``, sorted by path. The manifest has no record."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != BUNDLE_FILE)
    return tuple(FileRecord(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_of(p)) for p in files)

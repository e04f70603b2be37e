"""Files and folders as everything here treats them: written whole or not at all, kept inside their folder, digested.

A folder, written under a temporary name and put in place whole: an older one stays until then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from dipgo_deploy.core.bundle import BUNDLE_FILE, FileRecord
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError

__all__ = [
    "cache_folder",
    "check_digest",
    "check_target",
    "path_inside",
    "read_json",
    "records_of",
    "sha256_of",
    "staged",
    "write_atomic",
]


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name in the same folder, then rename: a reader sees the old file or the new one, whole.

    Raises InputError where it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _write_renamed(path, data)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be written ({reason}): free space, or choose another place") from None


def _write_renamed(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_target(path: Path, *, folder: bool = False) -> None:
    """InputError unless a file (or a ``folder``) can be written at ``path``: ask before long work, not after."""
    if path.exists() and path.is_dir() != folder:
        found, wanted = ("file", "folder") if folder else ("folder", "file")
        raise InputError(f"{path} is a {found}, a {wanted} is to be written there: choose another name")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{path} cannot be written, for {above} is no folder: choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written, for {above} is read-only: choose another place")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def path_inside(folder: Path, relative: str, *, links: bool = True) -> Path:
    """``folder / relative`` for a plain relative path; InputError for one that climbs out, also by a link.

    Without ``links`` no part of it may be a link, even to a place inside: for what is about to be written or deleted.
    """
    pure = PurePosixPath(relative)
    climbs = pure.is_absolute() or ".." in pure.parts or "\\" in relative or not pure.parts
    if climbs or not (folder / pure).resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{relative!r} in {folder} is no path inside that folder: the files were tampered with")
    if not links and (found := next((p for p in _parts(folder, pure) if p.is_symlink()), None)):
        raise InputError(f"{found} is a link, a folder or file of the bundle's own is wanted there: remove it")
    return folder / pure


def _parts(folder: Path, relative: PurePosixPath) -> list[Path]:
    return [folder.joinpath(*relative.parts[: count + 1]) for count in range(len(relative.parts))]


def check_digest(path: Path, record: FileRecord, whole: bool = True) -> None:
    """InputError unless ``path`` is a regular file of the recorded size and (if ``whole``) sha256."""
    if not path.is_file() or path.is_symlink():
        raise InputError(f"{path} is missing or not a regular file: export the bundle again")
    found = path.stat().st_size
    if found != record.bytes:
        raise InputError(f"{path} has {found} bytes, {record.bytes} are recorded: export the bundle again")
    if whole and sha256_of(path) != record.sha256:
        raise InputError(f"{path} differs from its recorded sha256 {record.sha256[:12]}: export the bundle again")


def records_of(folder: Path) -> tuple[FileRecord, ...]:
    """FileRecords of every regular file below ``folder``, sorted by path."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != BUNDLE_FILE)
    return tuple(FileRecord(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_of(p)) for p in found)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, a JSON file is wanted: name the file inside it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}): check the path") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): write the file anew") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a JSON {type(document).__name__}, an object is wanted: write the file anew")
    return document


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


def cache_folder() -> Path:
    """Where traces are kept: DIPGO_CACHE, else ``dipgo-deploy`` in the user's cache folder."""
    root = (
        os.environ.get("DIPGO_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dipgo-deploy"
    )
    return Path(root)

"""Files and folders: atomic writes, copies, and paths that stay inside their folder.

1. A file or folder is written under a temporary name and renamed once it is complete. An interrupted write leaves the
   older file or folder as it was.
2. A path from a document is relative and has no ``..``, so that no document names a file outside its folder.
3. Links on the disk are followed to regular files, as the hub's cache needs. Who reads a bundle compares digests.
4. Nothing is written or deleted through a link.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.file_kind import binary_kind

__all__ = [
    "cache_folder",
    "check_target",
    "copy_folder",
    "missing_text",
    "path_inside",
    "read_json",
    "staged",
    "write_atomic",
]


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name in the same folder, then rename it. A reader never sees a partial file.

    Args:
        path: the file. Missing folders above it are made.
        content: bytes, or text to write as UTF-8.

    Raises:
        InputError: the file cannot be written.
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
            os.fsync(stream.fileno())  # Without it, a crash after the rename can leave an empty file.
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read.
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_target(path: Path, *, folder: bool = False) -> None:
    """Before long work, check that its result can be written.

    Args:
        path: the file or folder to be written.
        folder: whether the result is a folder. By default it is a file.

    Raises:
        InputError: nothing can be written at ``path``.
    """
    if path.exists() and path.is_dir() != folder:
        actual, expected = ("file", "folder") if folder else ("folder", "file")
        raise InputError(f"{path} is a {actual}, expected a {expected}: choose another name")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{path} cannot be written, because {above} is not a folder: choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written, because {above} is read-only: choose another place")


def path_inside(folder: Path, relative: str, *, links: bool = True) -> Path:
    """The path of a file that a document names.

    Args:
        folder: the folder of the document.
        relative: a relative path with forward slashes.
        links: whether a part of the path may be a link. False for a path that is about to be written or deleted.

    Returns:
        ``folder / relative``.

    Raises:
        InputError: the path leads out of ``folder``, or a part of it is a link that is not allowed.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or {"\\", "\0"} & set(relative) or not pure.parts:
        raise InputError(f"{relative!r} is not a path inside {folder}: the files were tampered with")
    if not links and (link := next((part for part in _parts(folder, pure) if part.is_symlink()), None)):
        raise InputError(
            f"{link} is a link, and nothing is written through links: replace it by a copy of {os.path.realpath(link)}"
        )
    return folder / pure


def _parts(folder: Path, relative: PurePosixPath) -> list[Path]:
    return [folder.joinpath(*relative.parts[: count + 1]) for count in range(len(relative.parts))]


def missing_text(path: Path) -> str:
    """Why there is no regular file or folder at ``path``, as the end of a sentence."""
    link = next((part for part in (path, *path.absolute().parents) if part.is_symlink() and not part.exists()), None)
    if link is not None:
        end = os.path.realpath(link)
        cause = "leads back to itself" if os.path.islink(end) else f"leads to {end}, which does not exist"
        return f"is a link that {cause}" if link == path else f"is behind the link {link}, which {cause}"
    return "is not a regular file" if path.exists() else "is missing"


def copy_folder(source: Path, target: Path, ancestors: Sequence[str] = ()) -> None:
    """Copy a folder. Links become copies of the files and folders that they lead to.

    Args:
        source: the folder.
        target: the new folder.
        ancestors: real paths of the folders around ``source`` that are being copied.

    Raises:
        InputError: a link is broken or leads back to a folder around it, or something is not a regular file.
    """
    around = (*ancestors, os.path.realpath(source))
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if os.path.realpath(path) in around:
            raise InputError(f"{path} is a link that leads back to a folder around it: remove it")
        if path.is_dir():
            copy_folder(path, target / path.name, around)
        elif path.is_file():
            shutil.copyfile(path, target / path.name)
        else:
            raise InputError(f"{path} {missing_text(path)}: restore or remove it")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if the file does not contain a JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problem = missing_text(path) if path.is_symlink() else "does not exist"
        raise InputError(f"{path} {problem}: check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, expected a JSON file: name the file inside the folder") from None
    except UnicodeDecodeError:
        kind = binary_kind(path) or "not text"
        raise InputError(f"{path} is {kind}, expected a JSON file: check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): check the path") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): write the file again") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a JSON {type(document).__name__}, expected an object: write the file again")
    return document


@contextmanager
def staged(out: Path, label: str = "new") -> Iterator[Path]:
    """An empty folder next to ``out`` that replaces ``out`` at the end of the context.

    After an exception the folder is removed, and so are the folders above it that were made for it. Engines of an older
    bundle at ``out`` move to the new bundle without records. The next engine build checks which are still valid.

    Args:
        out: the final folder.
        label: a part of the temporary name.

    Raises:
        InputError: the temporary folder cannot be made.
        OSError: the folder cannot be put in place.
    """
    out = Path(os.path.realpath(out))  # Where a link leads, so that the link stays.
    temporary, made = _make_temporary(out, label)
    try:
        yield temporary
        os.chmod(temporary, 0o755)  # mkdtemp makes folders that only their owner can enter.
        _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _drop_empty(made)


def _make_temporary(out: Path, label: str) -> tuple[Path, list[Path]]:
    """The temporary folder, and the folders above ``out`` that were made for it, innermost first."""
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
    with suppress(OSError):  # A folder that is in use is not empty, and neither are the folders above it.
        for folder in folders:
            folder.rmdir()


def _put_in_place(temporary: Path, out: Path) -> None:
    """Rename the temporary folder. An older folder is moved aside first, and moved back if the rename fails."""
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
    """The user's cache: DIPGO_CACHE, by default ``dipgo-deploy`` in the user's cache folder."""
    root = (
        os.environ.get("DIPGO_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dipgo-deploy"
    )
    return Path(root)

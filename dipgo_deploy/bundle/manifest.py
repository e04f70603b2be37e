"""Keep the manifest in step with the folder when a later command adds files to a bundle.

A command that rewrites recorded files drops their records first and adds them last. A process that dies in between
leaves a bundle that loads, with files that the manifest does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.bundle import BUNDLE_FILE, FileRecord
from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.files import load_manifest, save_manifest

__all__ = ["add_records", "drop_records"]


def add_records(folder: Path, files: Iterable[Path]) -> None:
    """Record ``files`` of the bundle in ``folder``, and drop the records of engines that are gone.

    Args:
        folder: the bundle.
        files: paths below ``folder``.
    """
    manifest = load_manifest(folder / BUNDLE_FILE)
    records = {r.path: r for r in manifest.files if f"/{ENGINES_FOLDER}/" not in r.path or (folder / r.path).is_file()}
    for path in files:
        name = path.relative_to(folder).as_posix()
        records[name] = FileRecord(name, path.stat().st_size, sha256_of(path))
    _save(folder, tuple(records[name] for name in sorted(records)))


def drop_records(folder: Path, paths: Iterable[Path]) -> None:
    """Forget the records of files, and of everything below folders.

    Args:
        folder: the bundle.
        paths: files and folders below ``folder``.
    """
    names = [path.relative_to(folder).as_posix() for path in paths]
    files = load_manifest(folder / BUNDLE_FILE).files
    _save(folder, tuple(r for r in files if not any(r.path == n or r.path.startswith(f"{n}/") for n in names)))


def _save(folder: Path, files: tuple[FileRecord, ...]) -> None:
    manifest = load_manifest(folder / BUNDLE_FILE)
    if files != manifest.files:
        save_manifest(folder / BUNDLE_FILE, replace(manifest, files=files))

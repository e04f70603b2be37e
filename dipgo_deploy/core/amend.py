"""A manifest that follows its folder: files that later commands add to a bundle get their records too.

Whoever is about to rewrite recorded files drops their records first and adds them last: a process that dies in between
leaves a bundle that loads, with files that nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.bundle import BUNDLE_FILE, FileRecord
from dipgo_deploy.core.disk import sha256_of
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.files import load_manifest, save_manifest

__all__ = ["amend_manifest", "drop_records"]


def amend_manifest(folder: Path, written: Iterable[Path]) -> None:
    """Record the files ``written`` below ``folder``, and drop the records of files below ``engines`` that are gone."""
    manifest = load_manifest(folder / BUNDLE_FILE)
    records = {r.path: r for r in manifest.files if f"/{ENGINES_FOLDER}/" not in r.path or (folder / r.path).is_file()}
    for path in written:
        name = path.relative_to(folder).as_posix()
        records[name] = FileRecord(name, path.stat().st_size, sha256_of(path))
    _save(folder, tuple(records[name] for name in sorted(records)))


def drop_records(folder: Path, paths: Iterable[Path]) -> None:
    """Forget the files ``paths``, or everything below those that are folders."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    files = load_manifest(folder / BUNDLE_FILE).files
    _save(folder, tuple(r for r in files if not any(r.path == n or r.path.startswith(f"{n}/") for n in names)))


def _save(folder: Path, files: tuple[FileRecord, ...]) -> None:
    manifest = load_manifest(folder / BUNDLE_FILE)
    if files != manifest.files:
        save_manifest(folder / BUNDLE_FILE, replace(manifest, files=files))

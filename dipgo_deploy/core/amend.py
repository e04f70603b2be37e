"""A manifest that follows its folder: files that later commands add to a bundle get their records too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.bundle import BUNDLE_FILE, FileRecord
from dipgo_deploy.core.files import load_manifest, save_manifest, sha256_of

__all__ = ["amend_manifest"]


def amend_manifest(folder: Path, written: Iterable[Path]) -> None:
    """Record the files ``written`` below ``folder``, and drop the records of files below ``engines`` that are gone."""
    manifest = load_manifest(folder / BUNDLE_FILE)
    records = {r.path: r for r in manifest.files if "/engines/" not in r.path or (folder / r.path).is_file()}
    for path in written:
        name = path.relative_to(folder).as_posix()
        records[name] = FileRecord(name, path.stat().st_size, sha256_of(path))
    files = tuple(records[name] for name in sorted(records))
    if files != manifest.files:
        save_manifest(folder / BUNDLE_FILE, replace(manifest, files=files))

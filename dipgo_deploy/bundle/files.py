"""Compare the files of a bundle with the manifest's records.

1. Prose, such as README.md, may be edited. Nothing reads prose.
2. Files below 64 MB and graphs are hashed at every load. Digests of larger files are remembered in the user's cache.
3. A difference in a component around the denoiser names the component and the ways to use another one.
4. Engines may be deleted by hand. The engine preflight reports a missing one.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from dipgo_deploy.core.bundle import BundleManifest
from dipgo_deploy.core.digests import check_digest
from dipgo_deploy.core.disk import path_inside
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError

__all__ = ["check_files", "is_prose"]

_SMALL_FILE = 64_000_000
"""Files below this many bytes are hashed at every load, in about 0.05 s."""

_PROSE = (".md", ".txt", ".png", ".jpg", "")
"""Suffixes of files in a bundle's own folder that people write and edit, and that nothing reads."""

_READ_BY_COMPONENTS = (".json", ".txt", ".model", ".jinja")
"""Suffixes of files whose mere presence changes a tokenizer or a component."""


def is_prose(relative: str) -> bool:
    """Whether nothing reads a file of a bundle.

    Args:
        relative: the path inside the bundle.

    Returns:
        True for a text or picture in the bundle's own folder, for Markdown, and for hidden files.
    """
    path = PurePosixPath(relative)
    return path.name.startswith(".") or path.suffix == ".md" or (len(path.parts) == 1 and path.suffix in _PROSE)


def check_files(
    folder: Path,
    manifest: BundleManifest,
    *,
    whole: bool = False,
    trust_weights: bool = False,
    replaced: Collection[str] = (),
) -> None:
    """Check every file that something reads.

    Args:
        folder: the bundle.
        manifest: its manifest.
        whole: hash every file now. By default remembered digests of large files will do.
        trust_weights: compare large files by size only, unless ``whole``.
        replaced: components that the caller replaces. Their files are not checked.

    Raises:
        InputError: a file is missing, differs from its record, or was added to a component.
    """
    for record in manifest.files:
        component = _component(record.path, manifest)
        is_absent_engine = f"/{ENGINES_FOLDER}/" in record.path and not (folder / record.path).exists()
        if is_prose(record.path) or component in replaced or is_absent_engine:
            continue
        is_small = record.bytes < _SMALL_FILE or record.path.endswith(".onnx")
        check_digest(
            path_inside(folder, record.path),
            record,
            whole or is_small or not trust_weights,
            remember=not whole and not is_small,
            remedy=_remedy(folder, record.path, component),
        )
    _check_added(folder, manifest, replaced)


def _check_added(folder: Path, manifest: BundleManifest, replaced: Collection[str]) -> None:
    recorded = {record.path for record in manifest.files}
    components = {_component(path, manifest) for path in recorded} - {"", *replaced}
    for component in sorted(components):
        for path in sorted((folder / component).glob("*")):
            relative = f"{component}/{path.name}"
            if path.suffix in _READ_BY_COMPONENTS and relative not in recorded and not is_prose(relative):
                raise InputError(
                    f"{path} was added to {component} after the export: remove it, or "
                    f"{_remedy(folder, relative, component)}"
                )


def _component(path: str, manifest: BundleManifest) -> str:
    """The component around the denoiser that a file belongs to, "" for other files."""
    first, slash, _ = path.partition("/")
    return first if slash and first != manifest.denoiser else ""


def _remedy(folder: Path, path: str, component: str) -> str:
    schedule = folder / "schedule.json"
    if path == "schedule.json":
        return "restore it, or export the edited schedule to a new bundle"
    if component == "scheduler":
        return "restore the scheduler, or search with another sampler, because a schedule is made for one sampler"
    if component in ("", "class_embedder"):
        return "re-export the bundle"
    return (
        f"restore the {component}, or pass another one as load_pipeline(folder, {component}=...), or export a pipeline "
        f"that holds it with schedule {schedule}"
    )

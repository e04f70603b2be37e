"""The record of a run: what each stage read and wrote, as digests in one small JSON file of the output folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.disk import read_json, write_atomic
from dipgo_deploy.core.engine import ENGINES_FOLDER
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_document

__all__ = [
    "RECORD_FILE",
    "FileState",
    "RunRecord",
    "StageRecord",
    "exported_files",
    "file_state",
    "load_record",
    "save_record",
]

RECORD_FILE = "run.json"
"""Name of the record in the output folder."""

VERSION = "1.0"
"""Version of the record. A breaking change raises the major version."""

_LATER = (f"/{ENGINES_FOLDER}/", ".fp16.", ".bf16.")
"""Parts of the names of files that build-engine adds to a bundle after its export."""

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class FileState:
    """The digest of a file. If size and modification time are unchanged, the digest is not computed again."""

    sha256: str
    bytes: int
    changed_ns: int

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class StageRecord:
    """What a stage read, by label, and what it wrote. An interrupted stage is not ``done``."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, FileState] = field(default_factory=dict)
    done: bool = False

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class RunRecord:
    """The stages of a run by name."""

    stages: Mapping[str, StageRecord] = field(default_factory=dict)

    __pydantic_config__ = _STRICT

    def with_stage(self, name: str, stage: StageRecord) -> RunRecord:
        """A record in which ``stage`` replaces the older record of that stage."""
        return RunRecord({**self.stages, name: stage})


def load_record(out: Path) -> RunRecord:
    """The record in the folder ``out``, empty if there is none.

    Raises:
        InputError: a damaged record, or a record of a newer version.
    """
    path = out / RECORD_FILE
    return load_document(path, "run", RunRecord, reads=VERSION) if path.exists() else RunRecord()


def save_record(out: Path, record: RunRecord) -> None:
    """Write the record atomically."""
    document = {"format": "run", "format_version": VERSION, **asdict(record)}
    write_atomic(out / RECORD_FILE, json.dumps(document, indent=1) + "\n")


def file_state(path: Path, known: FileState | None = None) -> FileState:
    """The state of a file.

    Args:
        path: a file that exists.
        known: an older state. Its digest is used if size and modification time are the same.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the path in the recipe, or delete the run's folder")
    status = path.stat()
    if path.name == BUNDLE_FILE:  # read every time: build-engine rewrites the file, and it is small
        return FileState(_manifest_digest(path), 0, 0)
    if known is not None and (known.bytes, known.changed_ns) == (status.st_size, status.st_mtime_ns):
        return known
    return FileState(sha256_of(path), status.st_size, status.st_mtime_ns)


def _manifest_digest(path: Path) -> str:
    """The digest of a manifest without the records of files that build-engine adds."""
    document = read_json(path)
    files: Iterable[Any] = document.get("files", [])
    document["files"] = [entry for entry in files if not any(part in str(entry) for part in _LATER)]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def exported_files(bundle: Path) -> list[Path]:
    """The files of a bundle that export wrote, and the manifest."""
    names = [str(entry["path"]) for entry in read_json(bundle / BUNDLE_FILE)["files"]]
    return [bundle / BUNDLE_FILE, *(bundle / name for name in names if not any(part in name for part in _LATER))]

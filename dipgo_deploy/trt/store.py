"""Engines that this machine has built: where each digest was last built, and which files may be trusted.

An engine is code, so loading an engine runs the code of its maker. The user's cache keeps a note of every engine that
was built here, outside all bundles. An engine without a note is loaded only on request.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.disk import cache_folder, read_json, write_atomic
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_engine_record, save_engine_record

__all__ = ["check_trusted", "copy_engines", "find_built", "forget_built", "is_trusted", "is_whole", "note_built"]


def note_built(engine: Path, record: EngineRecord) -> None:
    """Note that the file ``engine`` was built on this machine."""
    note = {"path": str(engine.absolute()), "sha256": record.sha256}
    write_atomic(_note(record.digest), json.dumps(note) + "\n")
    write_atomic(_trusted(record.sha256), "")


def forget_built(engine: Path, record: EngineRecord) -> None:
    """Drop the note of the file ``engine``, which is about to be removed."""
    try:
        noted_path = read_json(_note(record.digest)).get("path")
    except InputError:
        return
    if noted_path == str(engine.absolute()):
        _note(record.digest).unlink(missing_ok=True)


def find_built(digest: str) -> Path | None:
    """An engine of this digest that was built here and is still intact, with its record. None if there is none."""
    try:
        note = read_json(_note(digest))
        engine = Path(str(note["path"]))
        record = load_engine_record(engine.with_suffix(".json"))
    except (InputError, KeyError):
        return None
    return engine if record.digest == digest and record.sha256 == note["sha256"] and is_whole(engine, record) else None


def is_whole(engine: Path, record: EngineRecord) -> bool:
    """Whether an engine file has the size and sha256 of its record."""
    return engine.is_file() and engine.stat().st_size == record.bytes and sha256_of(engine) == record.sha256


def copy_engines(sources: Mapping[Path, Path]) -> None:
    """Copy engines with their records. ``sources`` maps each target to the engine that it copies."""
    staged = {}
    # Graphs may have swapped names, so every copy is complete before any copy replaces an engine.
    for target, source in sources.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        record = replace(load_engine_record(source.with_suffix(".json")), graph=target.stem)
        temporary = target.with_name(f".{target.name}.copy")
        temporary.unlink(missing_ok=True)  # Opening a link would write to the file that it points to.
        shutil.copyfile(source, temporary)
        staged[target] = (temporary, record)
    for target, (temporary, record) in staged.items():
        target.with_suffix(".json").unlink(missing_ok=True)
        temporary.replace(target)
        save_engine_record(target.with_suffix(".json"), record)
        note_built(target, record)


def is_trusted(record: EngineRecord) -> bool:
    """Whether the engine of a record was built, or copied, on this machine."""
    return _trusted(record.sha256).is_file()


def check_trusted(engine: Path, record: EngineRecord, trust: bool = False) -> None:
    """Refuse an engine that was not built on this machine.

    Args:
        engine: the engine file, for the message.
        record: its record.
        trust: accept the engine anyway.

    Raises:
        InputError: the engine was built elsewhere and is not trusted.
    """
    if not trust and not is_trusted(record):
        raise InputError(
            f"{engine} was not built on this machine, and an engine is code: build the engines here, or set "
            "trust_engines if you trust their maker"
        )


def _note(digest: str) -> Path:
    return cache_folder() / "engines" / f"{digest}.json"


def _trusted(sha256: str) -> Path:
    return cache_folder() / "engines" / "trusted" / sha256

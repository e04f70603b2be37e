"""Engines that this machine has built: where a digest was last built, and which files may be trusted.

An engine is code: whoever loads one runs what its maker put there. So a note stands in the user's cache, outside every
bundle, for each engine built here; an engine without one is loaded only on request.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.disk import cache_folder, read_json, sha256_of, write_atomic
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_engine_record, save_engine_record

__all__ = ["check_trusted", "copies", "find_built", "forget_built", "is_trusted", "is_whole", "note_built"]


def note_built(engine: Path, record: EngineRecord) -> None:
    """Remember that ``engine`` was built here."""
    note = {"path": str(engine.absolute()), "sha256": record.sha256}
    write_atomic(_note(record.digest), json.dumps(note) + "\n")
    write_atomic(_trusted(record.sha256), "")


def forget_built(engine: Path, record: EngineRecord) -> None:
    """Remember no longer that ``engine`` was built here: it is about to go."""
    try:
        known = read_json(_note(record.digest)).get("path")
    except InputError:
        return
    if known == str(engine.absolute()):
        _note(record.digest).unlink(missing_ok=True)


def find_built(digest: str) -> Path | None:
    """An engine of this digest that was built here and still stands, its record beside it; else None."""
    try:
        note = read_json(_note(digest))
        engine = Path(str(note["path"]))
        record = load_engine_record(engine.with_suffix(".json"))
    except (InputError, KeyError):
        return None
    return engine if record.digest == digest and record.sha256 == note["sha256"] and is_whole(engine, record) else None


def is_whole(engine: Path, record: EngineRecord) -> bool:
    """Whether an engine file is the one of its record."""
    return engine.is_file() and engine.stat().st_size == record.bytes and sha256_of(engine) == record.sha256


def copies(wanted: Mapping[Path, Path]) -> None:
    """Copy engines, given as target → found, all under temporary names before any takes its place: names may swap."""
    staged = {}
    for target, found in wanted.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        record = replace(load_engine_record(found.with_suffix(".json")), graph=target.stem)
        temporary = target.with_name(f".{target.name}.copy")
        temporary.unlink(missing_ok=True)  # a link would be written through
        shutil.copyfile(found, temporary)
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
    """InputError for an engine that was not built on this machine, unless ``trust``."""
    if not trust and not is_trusted(record):
        raise InputError(
            f"{engine} was not built on this machine, and an engine is code: build it here with dipgo-deploy "
            "build-engine, or pass --trust-engines if you trust its maker"
        )


def _note(digest: str) -> Path:
    return cache_folder() / "engines" / f"{digest}.json"


def _trusted(sha256: str) -> Path:
    return cache_folder() / "engines" / "trusted" / sha256

"""What a command may write over: only what the same command would have made from the same inputs.

1. A file of another kind is refused before anything is loaded.
2. A schedule is replaced if its ``origin`` holds the seal of the same inputs and the same content. A schedule that
   was edited by hand has another seal.
3. A measurement is replaced if it is of the same model on the same backend.
4. A picture is replaced if dipgo-deploy drew it, whatever it shows.
5. ``--force`` replaces any file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.file_kind import file_kind

if TYPE_CHECKING:
    from dipgo_deploy.core.contract import Contract
    from dipgo_deploy.core.schedule import Schedule
    from dipgo_deploy.search import SearchOptions

__all__ = [
    "Force",
    "check_kind",
    "check_picture_target",
    "check_same",
    "check_schedule_target",
    "search_inputs",
    "with_seal",
]

Force = Annotated[
    bool, typer.Option("--force", help="Replace what is at the output, even if it was made from other inputs.")
]

_SEAL = "seal"
"""Key of ``Schedule.origin`` that ties a schedule to the inputs of its search."""

_DRAWN_BY_US = b"dipgo-deploy"
"""Text near the start of every picture that dipgo-deploy draws."""

_REMEDY = "give another --out, or --force to replace it"


def check_kind(out: Path, kind: str, force: bool) -> None:
    """Before long work, check that a document replaces only a document of its own kind.

    Args:
        out: the file that is about to be written.
        kind: the format of the document, such as ``schedule``.
        force: whether anything may be replaced.

    Raises:
        InputError: ``out`` is a file of another kind.
    """
    if force or not out.exists() or (current := file_kind(out)) == f"a {kind} file":
        return
    raise InputError(f"{out} is {current}, and a {kind} file would replace it: {_REMEDY}")


def check_same(out: Path, is_same: bool, what: str, force: bool) -> None:
    """Raise InputError if ``out`` exists and was made from other inputs.

    Args:
        out: the file that is about to be written.
        is_same: whether the inputs are the same. It only matters if ``out`` exists.
        what: what ``out`` holds now, for the message.
        force: whether anything may be replaced.
    """
    if not force and out.exists() and not is_same:
        raise InputError(f"{out} holds {what}, made from other inputs than these: {_REMEDY}")


def check_picture_target(picture: Path, force: bool, option: str = "--out") -> None:
    """Check that a picture replaces only a picture that dipgo-deploy drew.

    Args:
        picture: the file that is about to be written.
        force: whether anything may be replaced.
        option: the option that names the file, for the message.

    Raises:
        InputError: ``picture`` is another file.
    """
    if force or not picture.exists():
        return
    with picture.open("rb") as stream:
        if _DRAWN_BY_US in stream.read(4096):
            return
    raise InputError(
        f"{picture} is {file_kind(picture)} that dipgo-deploy did not draw: give another {option}, or --force to "
        "replace it"
    )


def search_inputs(contract: Contract, options: SearchOptions) -> str:
    """All that decides the schedule of a search, as text.

    Args:
        contract: of the search.
        options: of the search. The place of a pruner's file does not count, but the content of a trained pruner does.

    Returns:
        Canonical JSON.
    """
    from dipgo_deploy.core.digests import sha256_of

    settings = asdict(options.settings) if options.settings is not None else {}
    trained = settings.pop("from_pruner", None)
    settings.pop("pruner", None)
    document: dict[str, Any] = {
        **asdict(replace(options, settings=None, latency=None)),
        "settings": settings,
        "latency": options.latency.digest if options.latency else "",
        "from_pruner": sha256_of(trained) if trained else "",
        "contract": {**asdict(contract), "versions": {}},
    }
    return json.dumps(document, sort_keys=True, default=str)


def with_seal(schedule: Schedule, inputs: str) -> Schedule:
    """``schedule`` with a seal in its origin, by which a later search knows its own work.

    Args:
        schedule: the schedule that a search made.
        inputs: of the search.

    Returns:
        The schedule.
    """
    return replace(schedule, origin={**schedule.origin, _SEAL: _seal(schedule, inputs)})


def _seal(schedule: Schedule, inputs: str) -> str:
    forecasts = sorted((step, block, list(values)) for (step, block), values in schedule.forecasts.items())
    content = [inputs, schedule.granularity, schedule.kind, schedule.blocks, schedule.compute, forecasts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def check_schedule_target(out: Path, inputs: str, force: bool) -> None:
    """Before a search, check that it replaces only a schedule of the same inputs.

    Args:
        out: the file of the schedule.
        inputs: of the search.
        force: whether anything may be replaced.

    Raises:
        InputError: ``out`` is another file, or a schedule that was edited or made from other inputs.
    """
    from dipgo_deploy.core.files import load_schedule

    check_kind(out, "schedule", force)
    if force or not out.exists():
        return
    old = load_schedule(out)
    origin = " ".join(old.origin[key] for key in ("method", "ratio") if key in old.origin) or "unknown origin"
    check_same(out, old.origin.get(_SEAL) == _seal(old, inputs), f"a schedule ({origin})", force)

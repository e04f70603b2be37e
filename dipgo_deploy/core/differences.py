"""Differences between two artifacts of one kind: contracts, schedules, programs, bundles and all other documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dipgo_deploy.core.bundle import BundleManifest
from dipgo_deploy.core.program import Program, memory_bytes
from dipgo_deploy.core.schedule import Schedule

__all__ = ["Difference", "differences", "manifest_fields", "program_fields", "schedule_fields"]

_ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A field in which two artifacts differ, with both values. None where one of them lacks the field."""

    name: str
    first: Any
    second: Any


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Compare two documents leaf by leaf. A list counts as one leaf.

    Args:
        first: nested mappings of plain values.
        second: the same for the other artifact.

    Returns:
        The fields that differ, by dotted name, in the order of ``first``.
    """
    ours, theirs = dict(_leaves(first)), dict(_leaves(second))
    pairs = ((name, ours.get(name, _ABSENT), theirs.get(name, _ABSENT)) for name in dict.fromkeys((*ours, *theirs)))
    return tuple(
        Difference(name, None if a is _ABSENT else a, None if b is _ABSENT else b) for name, a, b in pairs if a != b
    )


def _leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, list(value) if isinstance(value, tuple) else value


def schedule_fields(schedule: Schedule) -> dict[str, Any]:
    """A schedule as comparable fields: one string of 0 and 1 a block, and the sampler's options one by one.

    ``origin`` and versions are left out, because nothing depends on them.
    """
    return {
        "contract": _contract_fields(asdict(schedule.contract)),
        "granularity": schedule.granularity,
        "kind": schedule.kind,
        "compute": {block: "".join("01"[block in step] for step in schedule.computed) for block in schedule.blocks},
        "forecasts": {f"{block} at step {step}": list(c) for (step, block), c in sorted(schedule.forecasts.items())},
        "experts": list(schedule.experts),
    }


def _contract_fields(contract: dict[str, Any]) -> dict[str, Any]:
    sampler = {**contract["sampler"], "config": json.loads(contract["sampler"]["config"])}
    return {**contract, "sampler": sampler, "versions": {}}


def program_fields(program: Program) -> dict[str, Any]:
    """What a program costs: layout, network calls, graphs, MACs and bytes for one image."""
    return {
        "layout": program.layout,
        "network calls": program.nfe,
        "graphs": len(program.graphs),
        "MACs": asdict(program.macs),
        "bytes": memory_bytes(program, 1),
    }


def manifest_fields(manifest: BundleManifest) -> dict[str, Any]:
    """The files of a bundle with sizes and short digests. Documents that are compared by content are left out."""
    documents = ("schedule.json", "program.json", "README.md")
    files = [record for record in manifest.files if record.path not in documents]
    return {
        "files": {record.path: f"{record.bytes} bytes, {record.sha256[:12]}" for record in files},
        "total bytes": sum(record.bytes for record in manifest.files),
    }

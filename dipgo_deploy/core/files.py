"""The file formats: JSON documents of every artifact, checked by pydantic.

Every document contains ``format`` (the artifact) and ``format_version`` (``major.minor``). A newer major version is
refused. So are unknown fields and numbers that are not finite. docs/formats.md describes the formats for readers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dipgo_deploy.core import blocks, bundle, contract, engine, latency, precision, program, tensors
from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, check_block_graph
from dipgo_deploy.core.bundle import BundleManifest
from dipgo_deploy.core.disk import path_inside, read_json, write_atomic
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.core.program import Program, check_program
from dipgo_deploy.core.schedule import Schedule, check_schedule

__all__ = [
    "FORMAT_VERSION",
    "PRECISION_VERSION",
    "check_document",
    "format_of",
    "load_block_graph",
    "load_document",
    "load_engine_record",
    "load_latency_table",
    "load_manifest",
    "load_precision",
    "load_program",
    "load_schedule",
    "save_block_graph",
    "save_engine_record",
    "save_latency_table",
    "save_manifest",
    "save_precision",
    "save_program",
    "save_schedule",
]


FORMAT_VERSION = "1.1"
"""Version of the documents written here. A reader accepts every minor version of the same major version."""

PRECISION_VERSION = "2.0"
"""Version of precision records. Version 1 named the fp32 fallback nodes differently and is no longer read."""

_REWRITE = "update the program or write the file again"

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
for _module in (blocks, bundle, contract, engine, latency, precision, program, tensors):
    for _name in _module.__all__:
        _type = getattr(_module, _name)
        if isinstance(_type, type) and dataclasses.is_dataclass(_type):
            _type.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class _ScheduleDocument:
    """Schedule in its editable form: a string of 0 and 1 per block, one character per step."""

    contract: contract.Contract
    granularity: str
    kind: blocks.Kind
    compute: dict[str, str]
    forecasts: dict[str, dict[int, tuple[float, ...]]] = dataclasses.field(default_factory=dict)
    experts: tuple[str, ...] = ()
    origin: dict[str, str] = dataclasses.field(default_factory=dict)

    __pydantic_config__ = _STRICT


def format_of(path: Path) -> str:
    """The ``format`` field of any document. Raises InputError if the file does not contain a JSON object."""
    return str(read_json(path).get("format"))


def load_document(
    path: Path,
    kind: str,
    schema: type[T],
    version_key: str = "format_version",
    reads: str = FORMAT_VERSION,
    advice: str = _REWRITE,
) -> T:
    """Read and check a document.

    Args:
        path: the file.
        kind: the format it must have, such as ``schedule``.
        schema: a dataclass that pydantic knows.
        version_key: the field that holds the version.
        reads: the version that this program writes. The major version must agree.
        advice: what to do about another major version.

    Returns:
        The document as ``schema``.

    Raises:
        InputError: the file is damaged, has another format or another major version.
    """
    document = read_json(path)
    actual_kind, version = document.pop("format", None), str(document.pop(version_key, "0"))
    if actual_kind != kind:
        raise InputError(f"{path} has format {actual_kind!r}, expected {kind!r}: name a {kind} file")
    if version.split(".")[0] != reads.split(".")[0]:
        raise InputError(f"{path} has format version {version}, this program reads {reads}: {advice}")
    if kind == "blocks":
        _drop_block_ms(document)
    try:
        loaded = TypeAdapter(schema).validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {where}: {message} ({error.error_count()} errors): fix the file") from None
    if isinstance(made_for := getattr(loaded, "contract", None), contract.Contract):
        contract.check_contract(made_for, str(path))
    return loaded


def _drop_block_ms(document: dict[str, Any]) -> None:
    """Version 1.0 gave each block a latency ``ms``, which was always null. Latency tables hold latencies now."""
    for block in document.get("blocks", ()):
        if isinstance(block, dict) and block.get("ms", 0) is None:
            del block["ms"]


def check_document(document: Mapping[str, Any], schema: type[T], tool: str) -> T:
    """Check a document of another tool before it is used.

    Args:
        document: the parsed JSON.
        schema: a dataclass or type that pydantic knows.
        tool: the tool's name, which begins each message.

    Returns:
        The document as ``schema``.

    Raises:
        InputError: a field is missing, unknown or of another type.
    """
    try:
        return TypeAdapter(schema).validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80] or "the document"
        value = json.dumps(first["input"])[:40]
        raise InputError(f"{tool}: {where}: {first['msg']}, found {value}: fix the file") from None


def _save(path: Path, kind: str, value: object, indent: int | None = None, version: str = FORMAT_VERSION) -> None:
    body: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    document = {"format": kind, "format_version": version, **body}
    write_atomic(path, json.dumps(document, indent=indent, allow_nan=False) + "\n")


def save_block_graph(path: Path, graph: BlockGraph) -> None:
    """Write ``blocks.json``."""
    _save(path, "blocks", graph)


def load_block_graph(path: Path) -> BlockGraph:
    """Read and check ``blocks.json``. Raises InputError if damaged."""
    graph = load_document(path, "blocks", BlockGraph)
    check_block_graph(graph, str(path))
    return graph


def save_program(path: Path, value: Program) -> None:
    """Write ``program.json``."""
    _save(path, "program", value)


def save_precision(path: Path, record: PrecisionRecord) -> None:
    """Write ``precision.fp16.json``."""
    _save(path, "precision", record, indent=1, version=PRECISION_VERSION)


def load_precision(path: Path) -> PrecisionRecord:
    """Read ``precision.fp16.json``. Raises InputError if damaged."""
    return load_document(
        path,
        "precision",
        PrecisionRecord,
        reads=PRECISION_VERSION,
        advice="build the engines in half precision again, which searches the fp32 fallback nodes again",
    )


def save_engine_record(path: Path, record: EngineRecord) -> None:
    """Write the record of an engine."""
    _save(path, "engine", record, indent=1)


def load_engine_record(path: Path) -> EngineRecord:
    """Read the record of an engine. Raises InputError if damaged."""
    return load_document(path, "engine", EngineRecord)


def load_program(path: Path) -> Program:
    """Read and check ``program.json``. Raises InputError if damaged."""
    program = load_document(path, "program", Program)
    check_program(program, str(path))
    return program


def save_latency_table(path: Path, table: LatencyTable) -> None:
    """Write a latency table."""
    _save(path, "latency", table, indent=1)


def load_latency_table(path: Path) -> LatencyTable:
    """Read and check a latency table. Raises InputError if damaged."""
    table = load_document(path, "latency", LatencyTable)
    costs = (*table.pieces_ms, *table.blocks_ms.values(), table.call_ms, table.cold_ms_per_mib, table.border_ms_per_mib)
    if min(costs, default=0) < 0 or min(table.forward_ms, table.whole_over_calls, table.batch, table.rows) <= 0:
        raise InputError(f"{path} holds a latency below 0, or no latency of the whole: profile the model again")
    return table


def save_manifest(path: Path, manifest: BundleManifest) -> None:
    """Write ``bundle.json``."""
    _save(path, "bundle", manifest, indent=1)


def load_manifest(path: Path) -> BundleManifest:
    """Read ``bundle.json``. Raises InputError if damaged or if a path leaves the bundle."""
    manifest = load_document(path, "bundle", BundleManifest)
    records = (record.path for record in manifest.files)
    for relative in (manifest.denoiser, *records, *manifest.graphs.values(), *manifest.weights.values()):
        path_inside(path.parent, relative)
    return manifest


def save_schedule(path: Path, schedule: Schedule) -> None:
    """Write ``schedule.json``, one string of 0 and 1 per block."""
    columns = zip(*schedule.compute, strict=True)
    forecasts: dict[str, dict[int, tuple[float, ...]]] = {}
    for (step, block), coefficients in sorted(schedule.forecasts.items()):
        forecasts.setdefault(block, {})[step] = coefficients
    document = _ScheduleDocument(
        contract=schedule.contract,
        granularity=schedule.granularity,
        kind=schedule.kind,
        compute={b: "".join("01"[on] for on in column) for b, column in zip(schedule.blocks, columns, strict=True)},
        forecasts=forecasts,
        experts=schedule.experts,
        origin=dict(schedule.origin),
    )
    _save(path, "schedule", document, indent=1)


def load_schedule(path: Path) -> Schedule:
    """Read and check ``schedule.json``. Raises InputError if damaged or if it cannot be run."""
    document = load_document(path, "schedule", _ScheduleDocument)
    calls = document.contract.sampler.calls
    for block, bits in document.compute.items():
        if len(bits) != calls or set(bits) - {"0", "1"}:
            raise InputError(
                f"{path}: compute.{block} must be {calls} characters 0 or 1 (one per network call), found {len(bits)} "
                f"characters {''.join(sorted(set(bits)))!r}: fix the file"
            )
    # Editors sort the keys of an object, so only the model knows the order of the blocks: see in_order.
    blocks = tuple(sorted(document.compute, key=lambda block: block == PREDICTION))
    columns = [document.compute[block] for block in blocks]
    schedule = Schedule(
        contract=document.contract,
        granularity=document.granularity,
        kind=document.kind,
        blocks=blocks,
        compute=tuple(tuple(bit == "1" for bit in row) for row in zip(*columns, strict=True)),
        forecasts={(s, b): c for b, steps in document.forecasts.items() for s, c in steps.items()},
        experts=document.experts,
        origin=document.origin,
    )
    check_schedule(schedule)
    return schedule


T = TypeVar("T")

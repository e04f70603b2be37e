"""Preflight: an engine is refused before it is loaded where its record does not fit this machine, program or batch.

1. Engines of this target and version, for this GPU, stand in the bundle; others are named.
2. Every graph has one, built from the graph and the weights as they are now.
3. Names and types of its inputs and outputs are those of the slots; the batch lies within its profile.
4. The file has the digest that its record and the bundle's manifest say, and was built here or is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dipgo_deploy.core.bundle import BundleManifest, FileRecord
from dipgo_deploy.core.disk import check_digest, path_inside
from dipgo_deploy.core.engine import ENGINES_FOLDER, EngineRecord
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.core.program import Program
from dipgo_deploy.graphs.untrusted import graph_digest
from dipgo_deploy.trt.driver import Device
from dipgo_deploy.trt.job import graph_tensors
from dipgo_deploy.trt.network import check_types
from dipgo_deploy.trt.store import check_trusted
from dipgo_deploy.trt.target import Target

__all__ = ["Engine", "engines_home", "preflight"]

_BUILD = "run dipgo-deploy build-engine on this machine"


@dataclass(frozen=True)
class Engine:
    """An engine that may be loaded, and its record."""

    path: Path
    record: EngineRecord


def preflight(
    folder: Path,
    manifest: BundleManifest,
    program: Program,
    graphs: Mapping[str, Path],
    weights: Path,
    target: Target,
    batch: int,
    *,
    trust: bool = False,
) -> dict[str, Engine]:
    """The engine of every graph of ``program``, for the first GPU and ``batch`` images; nothing is loaded.

    ``graphs`` are the ONNX files behind the program, ``weights`` the one behind them. Raises InputError with what
    was wanted, found and what to do, UsageError for a batch that the engines do not take.
    """
    device = target.driver.devices[0]
    home = engines_home(folder, manifest, target)
    recorded = {record.path: record for record in manifest.files}
    tensors = graph_tensors(program)
    engines = {}
    for name, onnx in graphs.items():
        path = home / f"{name}.engine"
        if not path.with_suffix(".json").is_file():
            raise InputError(f"{home} has no engine for graph {name}: {_BUILD}")
        record = load_engine_record(path.with_suffix(".json"))
        check_machine(record, target, device)
        _check_graph(record, onnx)
        _check_weights(record, recorded.get(weights.relative_to(folder).as_posix()))
        check_types(record.io, {tensor: spec.dtype for tensor, spec in tensors[name].items()}, f"engine {name}")
        _check_batch(record, batch)
        relative = path.relative_to(folder).as_posix()
        if relative not in recorded or recorded[relative].sha256 != record.sha256:
            raise InputError(f"{path} is not the engine that the bundle's manifest records: {_BUILD}")
        check_digest(path_inside(folder, relative), recorded[relative])
        check_trusted(path, record, trust)
        engines[name] = Engine(path, record)
    return engines


def engines_home(folder: Path, manifest: BundleManifest, target: Target) -> Path:
    """The folder of the engines of ``target`` in the bundle ``folder`` that fit the first GPU; InputError if none."""
    engines, device = folder / manifest.denoiser / ENGINES_FOLDER, target.driver.devices[0]
    found = sorted(path.name for path in engines.iterdir() if path.is_dir()) if engines.is_dir() else []
    for name in found:
        kind, _, rest = name.partition("-")
        version, _, gpus = rest.rpartition("-")
        if kind == target.name and version == target.version and device.gpu in gpus.split("+"):
            return engines / name
    same = [name for name in found if name.startswith(f"{target.name}-")]
    for name in same:  # perhaps a compatible one, which its record says
        records = sorted((engines / name).glob("*.json"))
        if records and not _misfit(load_engine_record(records[0]), target, device):
            return engines / name
    stands = f"found are those for {', '.join(found)}" if found else "the bundle has none"
    raise InputError(f"engines of {target.name} {target.version} for {device.gpu} are wanted, {stands}: {_BUILD}")


def check_machine(record: EngineRecord, target: Target, device: Device) -> None:
    """InputError unless the engine runs with ``target`` on ``device``."""
    if reason := _misfit(record, target, device):
        raise InputError(f"engine {record.graph}: {reason}: {_BUILD}")


def _misfit(record: EngineRecord, target: Target, device: Device) -> str:
    if record.target != target.name:
        return f"built with {record.target}, {target.name} is wanted"
    if record.version != target.version and not _outlives(record, target):
        return f"built with {record.target} {record.version}, {target.version} is installed"
    compatible = "hardware_compatible" in record.flags and device.capability >= (8, 0)
    if device.gpu not in record.gpu.split("+") and not compatible:
        return f"built for {record.gpu}, this GPU is {device.gpu} ({device.name})"
    return ""


def _outlives(record: EngineRecord, target: Target) -> bool:
    """Version-compatible engines run on the same or a later release of their major version."""
    ours, theirs = target.version.split("."), record.version.split(".")
    later = [int(part) for part in ours if part.isdigit()] >= [int(part) for part in theirs if part.isdigit()]
    return "version_compatible" in record.flags and ours[0] == theirs[0] and later


def _check_graph(record: EngineRecord, onnx: Path) -> None:
    found = graph_digest(onnx.read_bytes())
    if found != record.graph_digest:
        raise InputError(
            f"engine {record.graph} was built from another graph ({record.graph_digest[:12]}) than the bundle's "
            f"({found[:12]}): {_BUILD}"
        )


def _check_weights(record: EngineRecord, weights: FileRecord | None) -> None:
    found = "unrecorded" if weights is None else weights.sha256
    if found != record.weights_digest:
        raise InputError(
            f"engine {record.graph} was built from other weights ({record.weights_digest[:12]}) than the bundle's "
            f"({found[:12]}): {_BUILD}"
        )


def _check_batch(record: EngineRecord, batch: int) -> None:
    low, high = (record.batch.min, record.batch.max) if record.profile else (record.batch.opt, record.batch.opt)
    if not low <= batch <= high:
        raise UsageError(
            f"a batch of {batch} images is wanted, engine {record.graph} takes {low} to {high}: ask for that, or build "
            f"with --batch {batch}-{batch}-{batch}"
        )

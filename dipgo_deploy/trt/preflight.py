"""Preflight: check every engine against this machine, the program and the batch before any engine is loaded.

1. The bundle has engines of this target and version for this GPU. A refusal names the engines that it has instead.
2. Every graph has an engine, and the engine was built from the graph and the weights as they are now.
3. Names and types of inputs and outputs are those of the slots. Batch and sizes lie within the engine's profile.
4. The file has the digest of its record and of the bundle's manifest, and was built on this machine or is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dipgo_deploy.core.bundle import BundleManifest, FileRecord
from dipgo_deploy.core.digests import check_digest
from dipgo_deploy.core.disk import path_inside
from dipgo_deploy.core.engine import ENGINES_FOLDER, EngineRecord, ProfileRange
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.untrusted import graph_digest
from dipgo_deploy.trt.driver import Device
from dipgo_deploy.trt.job import graph_tensors
from dipgo_deploy.trt.network import check_types
from dipgo_deploy.trt.store import check_trusted
from dipgo_deploy.trt.target import Target

__all__ = ["Engine", "engines_home", "preflight"]

_BUILD = "build engines of the bundle on this machine"


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
    sizes: Mapping[str, int],
    *,
    trust: bool = False,
) -> dict[str, Engine]:
    """Check the engine of every graph for the first GPU. No engine is loaded.

    Args:
        folder: the bundle.
        manifest: its manifest as it is now.
        program: the program over the engines.
        graphs: the ONNX file of each graph.
        weights: the weights file behind the graphs.
        target: the library.
        sizes: values of the symbols of a run.
        trust: accept engines that were not built on this machine.

    Returns:
        The engine of every graph.

    Raises:
        InputError: an engine is missing, does not fit, or is not trusted.
        UsageError: the engines do not take that batch or size.
    """
    device = target.driver.devices[0]
    home = engines_home(folder, manifest, target)
    files = {record.path: record for record in manifest.files}
    tensors = graph_tensors(program)
    engines = {}
    for name, onnx in graphs.items():
        path = home / f"{name}.engine"
        if not path.with_suffix(".json").is_file():
            raise InputError(f"{home} has no engine for graph {name}: {_BUILD}")
        record = load_engine_record(path.with_suffix(".json"))
        _check_machine(record, target, device)
        _check_graph(record, onnx)
        _check_weights(record, files.get(weights.relative_to(folder).as_posix()))
        check_types(record.io, {tensor: spec.dtype for tensor, spec in tensors[name].items()}, f"engine {name}")
        _check_batch(record, sizes["batch"])
        _check_sizes(record, tensors[name], sizes)
        relative = path.relative_to(folder).as_posix()
        if relative not in files or files[relative].sha256 != record.sha256:
            raise InputError(f"{path} is not the engine that the bundle's manifest records: {_BUILD}")
        check_digest(path_inside(folder, relative), files[relative])
        check_trusted(path, record, trust)
        engines[name] = Engine(path, record)
    return engines


def engines_home(folder: Path, manifest: BundleManifest, target: Target) -> Path:
    """The folder of the engines that fit the first GPU.

    Args:
        folder: the bundle.
        manifest: its manifest.
        target: the library.

    Returns:
        The folder.

    Raises:
        InputError: the bundle has no such engines.
    """
    engines, device = folder / manifest.denoiser / ENGINES_FOLDER, target.driver.devices[0]
    names = sorted(path.name for path in engines.iterdir() if path.is_dir()) if engines.is_dir() else []
    for name in names:
        kind, _, rest = name.partition("-")
        version, _, gpus = rest.rpartition("-")
        if kind == target.name and version == target.version and device.gpu in gpus.split("+"):
            return engines / name
    for name in (name for name in names if name.startswith(f"{target.name}-")):
        # Compatible engines run on other versions and GPUs than the folder's name says. Only their records tell.
        records = sorted((engines / name).glob("*.json"))
        if records and not _misfit(load_engine_record(records[0]), target, device):
            return engines / name
    available = f"the bundle has {', '.join(names)}" if names else "the bundle has no engines"
    raise InputError(f"{target.name} {target.version} needs engines for {device.gpu}, {available}: {_BUILD}")


def _check_machine(record: EngineRecord, target: Target, device: Device) -> None:
    """Raise InputError unless the engine of ``record`` runs with ``target`` on ``device``."""
    if reason := _misfit(record, target, device):
        raise InputError(f"engine {record.graph}: {reason}: {_BUILD}")


def _misfit(record: EngineRecord, target: Target, device: Device) -> str:
    if record.target != target.name:
        return f"built with {record.target}, requested is {target.name}"
    if record.version != target.version and not _outlives(record, target):
        return f"built with {record.target} {record.version}, {target.version} is installed"
    compatible = "hardware_compatible" in record.flags and device.capability >= (8, 0)
    if device.gpu not in record.gpu.split("+") and not compatible:
        return f"built for {record.gpu}, this GPU is {device.gpu} ({device.name})"
    return ""


def _outlives(record: EngineRecord, target: Target) -> bool:
    """Whether an engine is version-compatible and ``target`` is a later release of the same major version."""
    installed, built = target.version.split("."), record.version.split(".")
    is_later = [int(part) for part in installed if part.isdigit()] >= [int(part) for part in built if part.isdigit()]
    return "version_compatible" in record.flags and installed[0] == built[0] and is_later


def _check_graph(record: EngineRecord, onnx: Path) -> None:
    digest = graph_digest(onnx.read_bytes())
    if digest != record.graph_digest:
        raise InputError(
            f"engine {record.graph} was built from another graph ({record.graph_digest[:12]}) than the bundle's "
            f"({digest[:12]}): {_BUILD}"
        )


def _check_weights(record: EngineRecord, weights: FileRecord | None) -> None:
    digest = "unrecorded" if weights is None else weights.sha256
    if digest != record.weights_digest:
        raise InputError(
            f"engine {record.graph} was built from other weights ({record.weights_digest[:12]}) than the bundle's "
            f"({digest[:12]}): {_BUILD}"
        )


def _check_batch(record: EngineRecord, batch: int) -> None:
    low, high = (record.batch.min, record.batch.max) if record.profile else (record.batch.opt, record.batch.opt)
    if not low <= batch <= high:
        raise UsageError(
            f"batch must be {low} to {high} for engine {record.graph}, got {batch}: change the batch, or build engines "
            f"for batch {batch}-{batch}-{batch}"
        )


def _check_sizes(record: EngineRecord, tensors: Mapping[str, TensorSpec], sizes: Mapping[str, int]) -> None:
    """Raise UsageError for an input whose shape at ``sizes`` is outside the engine's profile."""
    for name, spec in tensors.items():
        if record.io[name].mode != "input":
            continue
        fixed = record.io[name].shape
        profile = record.profile.get(name, ProfileRange(fixed, fixed, fixed))
        for dim, low, size, high in zip(spec.shape, profile.min, spec.resolve(sizes), profile.max, strict=True):
            if low >= 0 and not low <= size <= high:
                raise UsageError(
                    f"{dim} must be {low} to {high} for engine {record.graph}, got {size}: change the size, or build "
                    "engines for it"
                )

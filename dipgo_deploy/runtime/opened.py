"""A bundle's engines opened on this machine's GPU: the target first, then preflight, then the backend."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from math import prod
from pathlib import Path

from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_engine_record, load_manifest
from dipgo_deploy.core.precision import HalfType, half_of
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.tensors import DTYPE_BYTES
from dipgo_deploy.graphs.variant import load_variant
from dipgo_deploy.lowering import StepProgram
from dipgo_deploy.runtime.half_export import own_variant
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from dipgo_deploy.runtime.tensorrt_engine import EngineFile
from dipgo_deploy.trt.preflight import Engine, engines_home, preflight
from dipgo_deploy.trt.target import Target, load_target

__all__ = ["built_precision", "engine_backend", "engine_records", "engine_steps", "work_bytes"]


def engine_backend(
    bundle: LoadedBundle, target: str, batch: int, *, gpu_memory: int | None = None, trust: bool = False
) -> tuple[Program, TensorRTBackend]:
    """The program that the engines of ``target`` run, and the backend that holds them.

    Raises MissingError where the target cannot run here, InputError where engines are missing or do not fit this
    machine, UsageError for a batch that they do not take.
    """
    found = load_target(target, "run")
    from dipgo_deploy.runtime.engines import engine_source  # brings ONNX Runtime, which engines run without

    source = engine_source(bundle, built_precision(bundle, found))
    manifest = load_manifest(bundle.folder / BUNDLE_FILE)  # as it is now: engines may be newer than the opened bundle
    engines = preflight(
        bundle.folder, manifest, source.program, source.graphs, source.weights, found, batch, trust=trust
    )
    files = {name: _file(one, source.graphs[name]) for name, one in engines.items()}
    records, rows = [one.record for one in engines.values()], bundle.manifest.contract.sizes(batch)["rows"]
    reserve = work_bytes(records, rows)
    return source.program, TensorRTBackend(found.module, files, gpu_memory=gpu_memory, reserve=reserve, name=target)


def _file(engine: Engine, onnx: Path) -> EngineFile:
    record = engine.record
    return EngineFile(engine.path, onnx, record.weight_bytes) if record.is_stripped else EngineFile(engine.path)


def work_bytes(records: Sequence[EngineRecord], rows: int) -> int:
    """Bytes that engines share besides their own: the largest activations that are known, and a scratch for outputs."""
    scratch: list[int] = []
    for record in records:
        outputs = [tensor for tensor in record.io.values() if tensor.mode == "output"]
        sizes = [prod(rows if dim < 0 else dim for dim in one.shape) * DTYPE_BYTES[one.dtype] for one in outputs]
        scratch = [max(pair) for pair in zip_longest(scratch, sizes, fillvalue=0)]
    return max((record.activation_bytes or 0 for record in records), default=0) + sum(scratch)


def engine_steps(
    bundle: LoadedBundle, target: str, batch: int, *, gpu_memory: int | None = None, trust: bool = False
) -> tuple[StepProgram, TensorRTBackend]:
    """As ``engine_backend``, with the program of a caller that samples itself."""
    program, backend = engine_backend(bundle, target, batch, gpu_memory=gpu_memory, trust=trust)
    precision = _half_of(bundle, program.contract.dtype)
    variant = own_variant(bundle) if precision is None else load_variant(bundle.folder, bundle.denoiser, precision)
    return bundle.lower_steps(blocks=None if variant is None else variant.blocks), backend


def engine_records(bundle: LoadedBundle, target: Target) -> list[EngineRecord]:
    """Records of the engines of ``target`` that this machine would run: those of one folder, whatever others hold.

    Raises InputError where the bundle has none for this machine.
    """
    home = engines_home(bundle.folder, bundle.manifest, target)
    return [load_engine_record(path) for path in sorted(home.glob("*.json"))]


def built_precision(bundle: LoadedBundle, target: Target) -> HalfType | None:
    """The half precision that the engines for this machine were converted to; None for the bundle's own type.

    Raises InputError where there is no engine of ``target`` for this machine, or of more than one precision.
    """
    found = {record.precision for record in engine_records(bundle, target)}
    if len(found) != 1:
        have = f"engines in {' and '.join(sorted(found))}" if found else "no engines"
        raise InputError(
            f"{bundle.folder} has {have} of {target.name}: run dipgo-deploy build-engine --target {target.name}"
        )
    (precision,) = found
    return _half_of(bundle, precision)


def _half_of(bundle: LoadedBundle, precision: str) -> HalfType | None:
    return None if precision == bundle.manifest.contract.dtype else half_of(precision)

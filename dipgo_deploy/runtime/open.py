"""Open a session: bind a bundle's program to a backend.

ONNX Runtime and PyTorch run graphs that are cut here. TensorRT runs engines that were built before. The target library
and every engine (trt/preflight.py) are checked before the backend is made, because TensorRT without a driver ends the
process.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from dipgo_deploy.bundle.bundle import Bundle, CompiledProgram
from dipgo_deploy.bundle.half_precision import graph_source
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.files import load_engine_record, load_manifest
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.lowering import StepProgram
from dipgo_deploy.models.sampler_note import guidance_note
from dipgo_deploy.runtime.backend import Backend
from dipgo_deploy.runtime.memory import NO_CUDA_GRAPH
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from dipgo_deploy.runtime.tensorrt_engine import EngineFile
from dipgo_deploy.runtime.torch_backend import TorchBackend
from dipgo_deploy.trt.job import graph_tensors
from dipgo_deploy.trt.preflight import Engine, engines_home, preflight
from dipgo_deploy.trt.target import Target, load_target

if TYPE_CHECKING:
    from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

__all__ = [
    "engine_records",
    "make_backend",
    "onnxruntime_class",
    "open_engines",
    "open_session",
    "shared_bytes",
]


def open_session(
    bundle: Bundle,
    batch: int,
    run: RunOptions = RunOptions(),
    *,
    guidance_scale: float = 1.0,
    sizes: Mapping[str, int] = MappingProxyType({}),
    compiled: CompiledProgram | None = None,
) -> Session:
    """Bind a program to a backend for a fixed number of images.

    Args:
        bundle: where graphs, weights and engines come from.
        batch: images of a run, within the contract's range.
        run: backend, device and how the graphs run.
        guidance_scale: weight of the conditional output. It must be 1 for a bundle without guidance.
        sizes: values of free sizes by symbol, such as ``{"tokens": 154}``. The others have their usual values.
        compiled: another program of the same model, see ``Bundle.compile``. None takes the bundle's own.

    Returns:
        The session, ready to run.

    Raises:
        UsageError: a batch or size outside the contract, or a compiled program for a backend that runs engines.
        MissingError: the device or a library is missing.
        InputError: engines are missing or do not fit this machine.
    """
    check_batch(bundle, batch)
    if note := guidance_note((compiled.program if compiled else bundle).contract.sampler, guidance_scale):
        warnings.warn(note, stacklevel=2)
    if run.on_engines:
        if compiled is not None:
            raise UsageError(f"backend {run.backend} runs a bundle's own engines: export the schedule and build them")
        program, _, engines = open_engines(bundle, batch, run, sizes)
        return Session(program, engines, batch, guidance_scale, sizes=sizes, cuda_graph=run.cuda_graph)
    chosen = compiled or (_torch_program(bundle) if run.backend == "torch" else bundle.compiled)
    backend = make_backend(bundle, chosen, run)
    # ONNX Runtime records a CUDA graph of every call by itself, so the session must not record all calls again.
    in_one_graph = run.cuda_graph and run.backend == "torch"
    return Session(chosen.program, backend, batch, guidance_scale, sizes=sizes, cuda_graph=in_one_graph)


def check_batch(bundle: Bundle, batch: int) -> None:
    """Raise UsageError unless ``batch`` images lie within the contract's range."""
    allowed = bundle.contract.batch
    if not allowed.min <= batch <= allowed.max:
        raise UsageError(f"batch must be {allowed.min} to {allowed.max}, as the bundle's contract says, got {batch}")


def make_backend(bundle: Bundle, compiled: CompiledProgram, run: RunOptions = RunOptions()) -> Backend:
    """The backend that runs a compiled program. Several sessions may share one.

    Args:
        bundle: where weights and the PyTorch model come from.
        compiled: the program and its graphs. PyTorch needs no graphs.
        run: ``onnxruntime`` or ``torch``, and how it runs.

    Returns:
        The backend.

    Raises:
        UsageError: a backend that runs engines, or ``cuda_graph`` on the CPU.
        MissingError: the device or a library is missing.
    """
    if run.cuda_graph and run.device == "cpu":
        raise UsageError(NO_CUDA_GRAPH)
    if run.backend == "torch":
        return TorchBackend(
            bundle.live_model, bundle.blocks, compiled.program, device=run.device, compiler=run.compiler
        )
    if run.on_engines:
        raise UsageError(f"backend {run.backend} runs engines, not graphs that are cut here: use onnxruntime or torch")
    return onnxruntime_class()(
        compiled.graphs, bundle.denoiser, threads=run.threads, device=run.device, cuda_graph=run.cuda_graph
    )


def _torch_program(bundle: Bundle) -> CompiledProgram:
    """The program in layout ``subnets``, the only layout that the live model can run."""
    if bundle.program.layout == "subnets":
        return CompiledProgram(bundle.program, {})
    return bundle.compile(bundle.schedule)


def onnxruntime_class() -> type[OnnxRuntimeBackend]:
    """The backend class. onnxruntime is an extra, and the torch backend works without it."""
    try:
        from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
    except ImportError as error:
        raise MissingError(f"onnxruntime cannot be imported ({error}): pip install 'dipgo-deploy[cpu]'") from None
    return OnnxRuntimeBackend


def open_engines(
    bundle: Bundle, batch: int, run: RunOptions, sizes: Mapping[str, int] = MappingProxyType({})
) -> tuple[Program, StepProgram, TensorRTBackend]:
    """Check the bundle's engines for this machine, and make the backend that runs them.

    Args:
        bundle: a bundle with engines.
        batch: images of a run.
        run: the target library, the memory for engines and whether foreign engines are trusted.
        sizes: values of free sizes by symbol.

    Returns:
        The program over the engines, the same program for a caller that runs the sampler itself, and the backend.

    Raises:
        MissingError: the target library cannot run here.
        InputError: engines are missing or do not fit this machine.
        UsageError: a batch or size that the engines do not take.
    """
    target = load_target(run.backend, "run")
    source = graph_source(bundle, _built_precision(bundle, target))
    manifest = load_manifest(bundle.folder / BUNDLE_FILE)  # Engines may be newer than the bundle in memory.
    values = source.program.contract.sizes(batch, sizes)
    engines = preflight(
        bundle.folder, manifest, source.program, source.graphs, source.weights, target, values, trust=run.trust_engines
    )
    files = {name: _engine_file(engine, source.graphs[name]) for name, engine in engines.items()}
    reserve = shared_bytes([engine.record for engine in engines.values()], graph_tensors(source.program), values)
    backend = TensorRTBackend(target.module, files, gpu_memory=run.gpu_memory, reserve=reserve, name=target.name)
    return source.program, bundle.lower_steps(blocks=source.blocks), backend


def _engine_file(engine: Engine, onnx: Path) -> EngineFile:
    record = engine.record
    return EngineFile(engine.path, onnx, record.weight_bytes) if record.is_stripped else EngineFile(engine.path)


def shared_bytes(
    records: Sequence[EngineRecord], tensors: Mapping[str, Mapping[str, TensorSpec]], sizes: Mapping[str, int]
) -> int:
    """GPU memory that the engines of a program share: activations of the largest engine, and scratch for outputs.

    Args:
        records: of all engines of a program.
        tensors: specs by graph and by the graph's tensor name.
        sizes: values of the symbols.

    Returns:
        Bytes. Activations that a record does not know count as 0.
    """
    # Output i of every engine uses scratch buffer i, so buffer i is as large as the largest output i.
    scratch: list[int] = []
    for record in records:
        outputs = [name for name, tensor in record.io.items() if tensor.mode == "output"]
        lengths = [tensors[record.graph][name].nbytes(sizes) for name in outputs]
        scratch = [max(pair) for pair in zip_longest(scratch, lengths, fillvalue=0)]
    return max((record.activation_bytes or 0 for record in records), default=0) + sum(scratch)


def engine_records(bundle: Bundle, target: Target) -> list[EngineRecord]:
    """Records of the engines that this machine would run with ``target``.

    Raises InputError if the bundle has none for this machine.
    """
    home = engines_home(bundle.folder, bundle.manifest, target)
    return [load_engine_record(path) for path in sorted(home.glob("*.json"))]


def _built_precision(bundle: Bundle, target: Target) -> str | None:
    """The half precision that the engines were converted to, None for the bundle's own dtype.

    Raises InputError if there is no engine for this machine, or where engines differ in precision.
    """
    precisions = {record.precision for record in engine_records(bundle, target)}
    if len(precisions) != 1:
        engines = f"engines in {' and '.join(sorted(precisions))}" if precisions else "no engines"
        raise InputError(
            f"{bundle.folder} has {engines} of {target.name}: build engines for target {target.name} again"
        )
    (precision,) = precisions
    return None if precision == bundle.contract.dtype else precision

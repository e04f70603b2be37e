"""The ONNX Runtime backend: graphs read and write slots in place, so that a call copies nothing.

Slots are NumPy arrays on the CPU and PyTorch tensors on CUDA. ONNX Runtime gets their addresses. On CUDA, graphs and
combinations are queued on one stream. With ``cuda_graph``, ONNX Runtime records every call in its first runs and
replays the call afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # noqa: TID251 - the home of onnxruntime

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.program import TIMESTEP, Combine, Run
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.links import resolve_weights
from dipgo_deploy.runtime.backend import BoundCall, Memory
from dipgo_deploy.runtime.memory import NO_CUDA_GRAPH, NumpyMemory, TorchMemory, check_device
from dipgo_deploy.runtime.streams import WorkStream

__all__ = ["OnnxRuntimeBackend", "check_in_use", "check_provider"]

_CUDA = "CUDAExecutionProvider"
_DTYPES = {
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
_BFLOAT16 = 16
"""TensorProto.BFLOAT16. IO binding takes the number, because NumPy has no name for this type."""


class OnnxRuntimeBackend:
    """Runs serialised ONNX graphs. Each graph has one inference session, made when a program first binds the graph.

    Args:
        graphs: ONNX bytes by graph name.
        weights: the folder that external data of the graphs is relative to.
        threads: threads within an operator. None leaves the number to ONNX Runtime.
        device: ``cpu`` or ``cuda``.
        cuda_graph: turn every call into a CUDA graph, which fixes its shapes.

    Raises:
        UsageError: fewer than one thread, an unknown device, or ``cuda_graph`` on the CPU.
        MissingError: ``cuda`` without a GPU.
    """

    name = "onnxruntime"

    def __init__(
        self,
        graphs: Mapping[str, bytes],
        weights: Path,
        *,
        threads: int | None = None,
        device: str = "cpu",
        cuda_graph: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        check_device(device)
        if cuda_graph and device != "cuda":
            raise UsageError(NO_CUDA_GRAPH)
        self._stream, self._cuda_graph, self._graph_ids = WorkStream(device), cuda_graph, 0
        self._graphs, self._weights, self._threads, self._device = graphs, weights, threads, device
        self._memory: Memory = NumpyMemory() if device == "cpu" else TorchMemory(device)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._timesteps: dict[tuple[float, int], Any] = {}

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Any:
        """See Memory."""
        return self._memory.allocate(spec, sizes)

    def write(self, buffer: Any, array: np.ndarray) -> None:
        """See Memory."""
        self._memory.write(buffer, array)

    def read(self, buffer: Any) -> np.ndarray:
        """See Memory."""
        return self._memory.read(buffer)

    def bind_combine(self, combine: Combine, buffers: Mapping[str, Any], guidance_scale: float) -> BoundCall:
        """See Memory."""
        return self._memory.bind_combine(combine, buffers, guidance_scale)

    def running(self) -> AbstractContextManager[None]:
        """See Memory."""
        return self._stream.running()

    def capture(self, calls: Sequence[BoundCall]) -> BoundCall:
        """See Memory. ONNX Runtime records its calls one by one instead."""
        raise UsageError("ONNX Runtime makes CUDA graphs of single calls: pass cuda_graph to its backend")

    def bind_run(self, run: Run, buffers: Mapping[str, Any], sizes: Mapping[str, int]) -> BoundCall:
        """See Backend. Only outputs that the run names are bound. Other outputs are not fetched."""
        session = self.session(run.graph)
        inputs = {name: buffers[slot] for name, slot in run.inputs}
        outputs = {name: buffers[slot] for name, slot in run.outputs}
        input_types = {tensor.name: tensor.type for tensor in session.get_inputs()}
        if TIMESTEP in input_types:
            inputs[TIMESTEP] = self._timestep(run.timestep, sizes)
        _check_names(run, "input", sorted(input_types.keys() ^ inputs.keys()), inputs)
        output_types = {tensor.name: tensor.type for tensor in session.get_outputs()}
        _check_names(run, "output", sorted(outputs.keys() - output_types.keys()), outputs)
        binding = session.io_binding()
        for bind, tensors, types in (
            (binding.bind_input, inputs, input_types),
            (binding.bind_output, outputs, output_types),
        ):
            for name, buffer in tensors.items():
                _check_dtype(run, name, buffer, types[name])
                self._bind_buffer(bind, name, buffer)
        return self._bound_call(session, binding)

    def session(self, graph: str) -> ort.InferenceSession:
        """The inference session of a graph, made on first use.

        Raises InputError for an unknown or damaged graph, MissingError where ONNX Runtime cannot use CUDA.
        """
        if graph not in self._sessions:
            if graph not in self._graphs:
                raise InputError(f"the program runs graph {graph!r}, which is not in the bundle: re-export")
            self._sessions[graph] = self._load(graph)
        return self._sessions[graph]

    def _load(self, graph: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        content, weights = resolve_weights(self._graphs[graph], self._weights)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
        # The graphs of a program take turns. Threads that spin after a call would slow the next graph down.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        check_provider(self._device, ort.get_available_providers())
        cuda = {"user_compute_stream": str(self._stream.handle), "enable_cuda_graph": str(int(self._cuda_graph))}
        providers: list[Any] = [(_CUDA, cuda)] if self._device == "cuda" else []
        try:
            session = ort.InferenceSession(content, options, providers=[*providers, "CPUExecutionProvider"])
        except Exception as error:  # The errors of ONNX Runtime have no common base class.
            reason = " ".join(str(error).split())
            raise InputError(f"ONNX Runtime cannot load graph {graph} ({reason}): re-export") from error
        check_in_use(self._device, session.get_providers())
        return session

    def _timestep(self, timestep: float, sizes: Mapping[str, int]) -> Any:
        key = (timestep, sizes["rows"])
        if key not in self._timesteps:
            buffer = self._memory.allocate(TensorSpec(TIMESTEP, ("rows",), "float32"), sizes)
            self._memory.write(buffer, np.full(sizes["rows"], timestep, np.float32))
            self._timesteps[key] = buffer
        return self._timesteps[key]

    def _bind_buffer(self, bind: Callable[..., None], name: str, buffer: Any) -> None:
        if self._device == "cpu":
            bind(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        else:
            dtype = _dtype_name(buffer)
            element = _BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
            bind(name, "cuda", buffer.device.index, element, tuple(buffer.shape), buffer.data_ptr())

    def _bound_call(self, session: ort.InferenceSession, binding: ort.IOBinding) -> BoundCall:
        if self._device == "cpu":
            return partial(session.run_with_iobinding, binding)
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._cuda_graph:
            # A CUDA graph holds addresses, so every bound call needs a graph id of its own.
            options.add_run_config_entry("gpu_graph_id", str(self._graph_ids))
            self._graph_ids += 1
        return partial(session.run_with_iobinding, binding, options)


def check_provider(device: str, available: Sequence[str]) -> None:
    """Raise MissingError for device ``cuda`` if the installed ONNX Runtime was built without CUDA."""
    if device == "cuda" and _CUDA not in available:
        raise MissingError(
            f"device cuda was requested, but this ONNX Runtime has no {_CUDA}: pip uninstall onnxruntime && "
            "pip install 'dipgo-deploy[gpu]'"
        )


def check_in_use(device: str, providers: Sequence[str]) -> None:
    """Raise MissingError for device ``cuda`` if a session silently fell back to other providers."""
    if device == "cuda" and _CUDA not in providers:
        raise MissingError(
            f"device cuda was requested, but ONNX Runtime fell back to {', '.join(providers)}: install the CUDA and "
            "cuDNN libraries that this version of onnxruntime-gpu is built for (the log names what could not be loaded)"
        )


def _dtype_name(buffer: Any) -> str:
    return str(buffer.dtype).removeprefix("torch.")


def _check_names(run: Run, kind: str, mismatched: list[str], bound: Mapping[str, Any]) -> None:
    if not mismatched:
        return
    name, where = mismatched[0], f"graph {run.graph} at step {run.step}"
    if name in bound:
        raise InputError(f"{where} has no {kind} {name!r}, which the program binds: re-export")
    raise InputError(f"{where} needs {kind} {name!r}, which the program does not bind: re-export")


def _check_dtype(run: Run, name: str, buffer: Any, onnx_type: str) -> None:
    if _DTYPES.get(onnx_type) != _dtype_name(buffer):
        raise InputError(
            f"graph {run.graph} at step {run.step}: {name!r} is {onnx_type}, but the slot is {_dtype_name(buffer)}: "
            "re-export"
        )

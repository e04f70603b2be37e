"""Graphs on ONNX Runtime: slots are bound in place, so that a call copies nothing.

On the CPU slots are NumPy arrays, on CUDA PyTorch tensors; either way ONNX Runtime is given their addresses. On CUDA it
queues on the stream that combinations are queued on, and neither waits for the other; with ``cuda_graph`` it records
every call at its first runs and replays it afterwards.
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
from dipgo_deploy.runtime.backend import BoundCall, Memory
from dipgo_deploy.runtime.memory import NumpyMemory, TorchMemory, check_device
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
"""ONNX's number of the element type that NumPy has no name for."""


class OnnxRuntimeBackend:
    """Runs serialised ONNX graphs; one inference session per graph, made when a program first binds it.

    Args:
        graphs: each graph's ONNX bytes by its name.
        weights: the folder that the graphs' external data is relative to.
        threads: threads within an operator; None leaves it to ONNX Runtime.
        device: ``cpu`` or ``cuda``.
        cuda_graph: let every call become a CUDA graph; its shapes are fixed then.

    Raises:
        UsageError: fewer than one thread, an unknown device, or a CUDA graph without one.
        MissingError: ``cuda`` without a GPU or without an ONNX Runtime that has its provider.
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
            raise UsageError("cuda_graph needs device cuda, the device is cpu: leave it out")
        self._stream, self._cuda_graph, self._bound = WorkStream(device), cuda_graph, 0
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

    def captured(self, acts: Sequence[BoundCall]) -> BoundCall:
        """See Memory: ONNX Runtime records calls of its own, one by one."""
        raise UsageError("ONNX Runtime makes CUDA graphs of single calls: give cuda_graph to its backend")

    def bind_run(self, run: Run, buffers: Mapping[str, Any], sizes: Mapping[str, int]) -> BoundCall:
        """See Backend. Only the outputs that the run names are bound; the graph's others are not fetched."""
        session = self.session(run.graph)
        inputs = {name: buffers[slot] for name, slot in run.inputs}
        outputs = {name: buffers[slot] for name, slot in run.outputs}
        taken = {entry.name: entry.type for entry in session.get_inputs()}
        if TIMESTEP in taken:
            inputs[TIMESTEP] = self._timestep(run.timestep, sizes)
        _check_names(run, "input", sorted(taken.keys() ^ inputs.keys()), inputs)
        given = {exit.name: exit.type for exit in session.get_outputs()}
        _check_names(run, "output", sorted(outputs.keys() - given.keys()), outputs)
        binding = session.io_binding()
        for bind, buffers_of, types in ((binding.bind_input, inputs, taken), (binding.bind_output, outputs, given)):
            for name, buffer in buffers_of.items():
                _check_dtype(run, name, buffer, types[name])
                self._bind_buffer(bind, name, buffer)
        return self._act(session, binding)

    def session(self, graph: str) -> ort.InferenceSession:
        """The inference session of a graph, made on first use.

        Raises InputError for an unknown or damaged graph, MissingError where CUDA is wanted and silently left out.
        """
        if graph not in self._sessions:
            if graph not in self._graphs:
                raise InputError(f"the program runs graph {graph!r}, which is not among the graphs given: re-export")
            self._sessions[graph] = self._load(graph)
        return self._sessions[graph]

    def _load(self, graph: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._weights))
        # The graphs of a program take turns: workers that spin after a call steal the time of the next graph's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        check_provider(self._device, ort.get_available_providers())
        cuda = {"user_compute_stream": str(self._stream.handle), "enable_cuda_graph": str(int(self._cuda_graph))}
        providers: list[Any] = [(_CUDA, cuda)] if self._device == "cuda" else []
        try:
            session = ort.InferenceSession(self._graphs[graph], options, providers=[*providers, "CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no class of their own
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

    def _act(self, session: ort.InferenceSession, binding: ort.IOBinding) -> BoundCall:
        if self._device == "cpu":
            return partial(session.run_with_iobinding, binding)
        how = ort.RunOptions()
        how.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._cuda_graph:  # a number of its own for every set of addresses
            how.add_run_config_entry("gpu_graph_id", str(self._bound))
            self._bound += 1
        return partial(session.run_with_iobinding, binding, how)


def check_provider(device: str, available: Sequence[str]) -> None:
    """MissingError where ``cuda`` is wanted and the installed ONNX Runtime was built without it."""
    if device == "cuda" and _CUDA not in available:
        raise MissingError(
            f"device cuda is wanted, but this ONNX Runtime has no {_CUDA}: pip uninstall onnxruntime && pip install "
            "'dipgo-deploy[gpu]'"
        )


def check_in_use(device: str, providers: Sequence[str]) -> None:
    """MissingError where ``cuda`` is wanted and a session silently went without it."""
    if device == "cuda" and _CUDA not in providers:
        raise MissingError(
            f"device cuda is wanted, but ONNX Runtime fell back to {', '.join(providers)}: install the CUDA and cuDNN "
            "libraries that its version of onnxruntime-gpu is built for (its log names what it could not load)"
        )


def _dtype_name(buffer: Any) -> str:
    return str(buffer.dtype).removeprefix("torch.")


def _check_names(run: Run, what: str, odd: list[str], given: Mapping[str, Any]) -> None:
    if odd:
        state = "does not have" if odd[0] in given else "needs and the program does not give"
        raise InputError(f"graph {run.graph} at step {run.step}: {what} {odd[0]!r} the graph {state}: re-export")


def _check_dtype(run: Run, name: str, buffer: Any, wanted: str) -> None:
    if _DTYPES.get(wanted) != _dtype_name(buffer):
        raise InputError(
            f"graph {run.graph} at step {run.step}: {name!r} is {wanted}, its slot {_dtype_name(buffer)}: re-export"
        )

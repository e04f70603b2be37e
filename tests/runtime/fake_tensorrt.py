"""A library with the members of TensorRT that are used here. It computes with ONNX Runtime on host addresses.

An engine file holds ONNX bytes. A stripped engine holds ``STRIPPED`` until a refitter gives it a graph. Like the real
library, this one refuses to run without memory, or with a tensor that has no address.

`FakeGpu` puts the library and a driver with one GPU in place of the real ones. Everything above them is real: the
target, preflight, the records, the backend and the session.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from dipgo_deploy.bundle import Bundle
from dipgo_deploy.bundle.half_precision import graph_source
from dipgo_deploy.bundle.manifest import add_records
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.engine import ENGINES_FOLDER, EngineRecord, EngineTensor, ProfileRange, engine_folder
from dipgo_deploy.core.files import load_manifest, save_engine_record
from dipgo_deploy.graphs.untrusted import graph_digest
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from dipgo_deploy.trt.driver import CudaDriver, Device
from dipgo_deploy.trt.job import graph_tensors
from dipgo_deploy.trt.store import note_built
from dipgo_deploy.trt.target import MODULES, load_target

DTYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(int32)": "INT32"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}


STRIPPED = b"stripped"


class Library:
    """The module that ``import tensorrt`` returns. ``log`` records loads, addresses and runs."""

    __version__ = "1.7"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")

    def __init__(self, weights: Path, activations=lambda name: 1000) -> None:
        self.weights, self.activations, self.log = weights, activations, []
        self.Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})

    def Runtime(self, logger):
        return Runtime(self)

    def Refitter(self, engine, logger):
        return Refitter(engine)

    def OnnxParserRefitter(self, refitter, logger):
        return OnnxParserRefitter(refitter)


class Runtime:
    def __init__(self, library):
        self._library = library

    def deserialize_cuda_engine(self, content):
        if content == b"damaged":
            return None
        if content == STRIPPED:
            return ICudaEngine(self._library, "", None)
        name, session = self._session_of(content)
        return ICudaEngine(self._library, name, session)

    def _session_of(self, content):
        options = onnxruntime.SessionOptions()
        folder = str(self._library.weights)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(bytes(content), options, providers=["CPUExecutionProvider"])
        name = session.get_modelmeta().graph_name
        self._library.log.append(("load", name))
        return name, session


class Refitter:
    def __init__(self, engine):
        self._engine, self._graph = engine, None

    def refit_cuda_engine(self):
        self._engine.__init__(self._engine._library, *self._graph)
        return True


class OnnxParserRefitter:
    def __init__(self, refitter):
        self._refitter = refitter

    def refit_from_file(self, path):
        if not Path(path).is_file():
            return False
        self._refitter._graph = Runtime(self._refitter._engine._library)._session_of(Path(path).read_bytes())
        return True


class ICudaEngine:
    def __init__(self, library, name, session):
        self._library, self._name, self._session = library, name, session
        self._inputs = {entry.name: entry for entry in (session.get_inputs() if session else ())}
        self._outputs = {entry.name: entry for entry in (session.get_outputs() if session else ())}
        self._tensors = {**self._inputs, **self._outputs}
        self.num_io_tensors = len(self._tensors)
        self.device_memory_size_v2 = library.activations(name)

    def get_tensor_name(self, index):
        return list(self._tensors)[index]

    def get_tensor_mode(self, name):
        return "input" if name in self._inputs else "output"

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=DTYPES[self._tensors[name].type])

    def get_tensor_shape(self, name):
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._tensors[name].shape)

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine):
        self._engine, self._shapes, self._addresses, self._memory = engine, {}, {}, (0, 0)

    def set_input_shape(self, name, shape):
        fixed = self._engine.get_tensor_shape(name)
        if len(fixed) != len(shape) or any(a not in (-1, b) for a, b in zip(fixed, shape, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        rows = next(iter(self._shapes.values()))[0]
        fixed = self._engine.get_tensor_shape(name)
        return self._shapes.get(name) or tuple(rows if dim == -1 else dim for dim in fixed)

    def set_tensor_address(self, name, address):
        if name not in self._engine._tensors:
            return False
        self._engine._library.log.append(("address", name))
        self._addresses[name] = address
        return True

    def set_device_memory(self, address, size):
        self._memory = (address, size)

    def execute_async_v3(self, stream):
        engine = self._engine
        if self._memory[1] < engine.device_memory_size_v2 or self._addresses.keys() != engine._tensors.keys():
            return False
        ctypes.memset(self._memory[0], 0xFF, engine.device_memory_size_v2)  # fails if it is not memory
        values = engine._session.run(None, {name: self._array(name).copy() for name in engine._inputs})
        for name, value in zip(engine._outputs, values, strict=True):
            self._array(name)[...] = value
        engine._library.log.append(("run", engine._name))
        return True

    def _array(self, name):
        shape, dtype = self.get_tensor_shape(name), NUMPY[self._engine.get_tensor_dtype(name).name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_byte * size).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


class FakeGpu:
    """One GPU with the library above, for the bundle in ``folder``, until the monkeypatch is undone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, denoiser: Path, gpu: tuple[int, int] = (8, 9)) -> None:
        self.library = Library(denoiser)
        driver = CudaDriver((Device(0, "a GPU", gpu, 1 << 30),), "13.0", "")
        for module in MODULES.values():
            monkeypatch.setitem(sys.modules, module, self.library)
        monkeypatch.setattr("dipgo_deploy.runtime.open.load_target", partial(load_target, probe=lambda: driver))
        # The backend allocates where its device says, which is the only thing that it cannot do without a GPU.
        monkeypatch.setitem(TensorRTBackend.__init__.__kwdefaults__, "device", "cpu")

    @property
    def runs(self) -> list[str]:
        """Names of the graphs that were run, in order."""
        return [name for event, name in self.library.log if event == "run"]

    @property
    def loads(self) -> list[str]:
        """Names of the graphs whose engines were loaded, in order."""
        return [name for event, name in self.library.log if event == "load"]


def write_engines(
    bundle: Bundle,
    target: str = "rtx",
    *,
    precision: str | None = None,
    batch: BatchRange | None = None,
    flags: Sequence[str] = (),
    trusted: bool = True,
) -> Path:
    """Write an engine and a record for every graph into the bundle's folder, as build-engine does."""
    source, manifest = graph_source(bundle, precision), load_manifest(bundle.folder / BUNDLE_FILE)
    home = bundle.denoiser / ENGINES_FOLDER / engine_folder(target, Library.__version__, "sm89")
    home.mkdir(parents=True, exist_ok=True)
    tensors = graph_tensors(source.program)
    for graph in source.program.graphs:
        onnx, engine = source.graphs[graph.name], home / f"{graph.name}.engine"
        engine.write_bytes(STRIPPED if "strip" in flags else onnx.read_bytes())
        io = {
            name: EngineTensor(
                "input" if name in (*graph.inputs, *graph.reads) else "output",
                tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape),
                spec.dtype,
            )
            for name, spec in tensors[graph.name].items()
        }
        record = EngineRecord(
            graph=graph.name, digest=sha256_of(engine), graph_digest=graph_digest(onnx.read_bytes()),
            weights_digest=manifest.digests[source.weights.relative_to(bundle.folder).as_posix()], target=target,
            version=Library.__version__, gpu="sm89", precision=precision or bundle.contract.dtype, flags=tuple(flags),
            batch=batch or bundle.contract.batch, io=io, profile={"any": ProfileRange((1,), (1,), (1,))},
            sha256=sha256_of(engine), bytes=engine.stat().st_size, weight_bytes=1000, activation_bytes=1000, layers=1,
            seconds=1.0, build_memory_bytes=0,
        )  # fmt: skip
        save_engine_record(home / f"{graph.name}.json", record)
        if trusted:
            note_built(engine, record)
    add_records(bundle.folder, home.iterdir())
    return home

"""A library with TensorRT's members, as far as they are used, that computes with ONNX Runtime on host addresses.

Engine files hold ONNX bytes, stripped ones ``STRIPPED``: they have nothing until a refitter puts it in. Like the real
one it refuses to run without memory or with a tensor that has no address.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime

DTYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(int32)": "INT32"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}


STRIPPED = b"stripped"


class Library:
    """What ``import tensorrt`` gives; ``log`` notes what was loaded and run."""

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
        name, session = self._opened(content)
        return ICudaEngine(self._library, name, session)

    def _opened(self, content):
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
        self._engine, self._found = engine, None

    def refit_cuda_engine(self):
        self._engine.__init__(self._engine._library, *self._found)
        return True


class OnnxParserRefitter:
    def __init__(self, refitter):
        self._refitter = refitter

    def refit_from_file(self, path):
        if not Path(path).is_file():
            return False
        self._refitter._found = Runtime(self._refitter._engine._library)._opened(Path(path).read_bytes())
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
        ctypes.memset(self._memory[0], 0xFF, engine.device_memory_size_v2)  # it is there, and nobody else's
        found = engine._session.run(None, {name: self._array(name).copy() for name in engine._inputs})
        for name, value in zip(engine._outputs, found, strict=True):
            self._array(name)[...] = value
        engine._library.log.append(("run", engine._name))
        return True

    def _array(self, name):
        shape, dtype = self.get_tensor_shape(name), NUMPY[self._engine.get_tensor_dtype(name).name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_byte * size).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

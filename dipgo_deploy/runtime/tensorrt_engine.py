"""One engine in device memory: deserialised, with a context whose addresses and activation memory are the caller's.

One code path for TensorRT and TensorRT for RTX: only names that both have (a test holds the lists).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from dipgo_deploy.core.errors import InputError, MissingError
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.core.tensors import DTYPE_BYTES
from dipgo_deploy.trt.network import dtype_name

__all__ = ["EngineFile", "OpenEngine", "changed", "open_engine"]


@dataclass(frozen=True)
class EngineFile:
    """An engine past preflight: its file and, where that is stripped, the ONNX graph that has its weights, and theirs.

    ``weight_bytes`` are those that are put in when it is loaded.
    """

    path: Path
    onnx: Path | None = None
    weight_bytes: int = 0

    @cached_property
    def bytes(self) -> int:
        """Device memory of the engine, as far as a file can tell."""
        return self.path.stat().st_size + self.weight_bytes


def changed(held: Mapping[str, int], wanted: Mapping[str, int]) -> dict[str, int]:
    """The addresses of ``wanted`` that ``held`` has not."""
    return {name: address for name, address in wanted.items() if held.get(name) != address}


@dataclass
class OpenEngine:
    """An engine and its one execution context.

    ``inputs`` names what it reads, ``outputs`` gives the bytes of every output at the batch that was set;
    ``activation_bytes`` is the memory that a run needs besides; ``held`` the addresses that the context has now, and
    ``memory`` address and size of its activations.
    """

    name: str
    engine: Any = field(repr=False)
    context: Any = field(repr=False)
    inputs: frozenset[str]
    outputs: Mapping[str, int]
    activation_bytes: int
    held: dict[str, int] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Give every tensor its address; those that stand already cost nothing, a timestep that is not read neither."""
        context = self.context
        for name, address in changed(self.held, addresses).items():
            if name == TIMESTEP and name not in self.inputs:
                continue
            if not context.set_tensor_address(name, address):
                raise InputError(f"engine {self.name} takes no address for {name!r}: build the engine again")
            self.held[name] = address

    def use_memory(self, address: int, size: int) -> None:
        """Compute in ``size`` bytes at ``address``, which no other engine uses at the same time."""
        context = self.context
        if self.memory != (address, size):
            context.set_device_memory(address, size)
            self.memory = (address, size)

    def enqueue(self, stream: int) -> None:
        """Queue one run on ``stream``; returns at once."""
        context = self.context
        if not context.execute_async_v3(stream):
            raise InputError(f"engine {self.name} refused to run: see its log, and build the engine again")


def open_engine(
    trt: Any, runtime: Any, name: str, file: EngineFile, shapes: Mapping[str, tuple[int, ...]], taken: int
) -> OpenEngine:
    """Load an engine file, put its weights in if it is stripped, and set the shapes of its inputs.

    ``taken`` says, for the refusal, how many bytes are held already. Raises InputError where the file is no engine of
    this machine, or does not take its weights or the shapes, MissingError where memory is short.
    """
    engine = runtime.deserialize_cuda_engine(file.path.read_bytes())
    if engine is None:
        raise InputError(f"{file.path} cannot be loaded (see the log above): build the engine again on this machine")
    if file.onnx is not None:
        _put_in_weights(trt, engine, name, file.onnx)
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise MissingError(
            f"not enough GPU memory for engine {name} ({taken / 2**20:.0f} MiB in use): lower gpu_memory so that other "
            "engines are evicted"
        )
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = frozenset(tensor for tensor in names if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT)
    for tensor in names:
        if tensor not in inputs:
            continue
        if tensor not in shapes:
            raise InputError(f"engine {name} wants an input {tensor!r} that the program does not give: build it again")
        if not context.set_input_shape(tensor, shapes[tensor]):
            raise InputError(
                f"engine {name} takes {tuple(engine.get_tensor_shape(tensor))} for {tensor!r}, {shapes[tensor]} is "
                "wanted: build it for this batch"
            )
    outputs = {}
    for tensor in names:
        if tensor not in inputs:
            element = DTYPE_BYTES[dtype_name(engine.get_tensor_dtype(tensor))]
            outputs[tensor] = prod(context.get_tensor_shape(tensor)) * element
    return OpenEngine(name, engine, context, inputs, outputs, int(engine.device_memory_size_v2))


def _put_in_weights(trt: Any, engine: Any, name: str, onnx: Path) -> None:
    """Give a stripped engine the weights of the graph that it was built from."""
    logger = trt.Logger(trt.Logger.WARNING)
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    if not (parser_refitter.refit_from_file(str(onnx)) and refitter.refit_cuda_engine()):
        raise InputError(f"engine {name} does not take the weights of {onnx} (see the log above): build it again")

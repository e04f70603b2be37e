"""OpenEngine: a deserialized engine and its execution context, with addresses and memory that the caller owns.

TensorRT and TensorRT for RTX share this code. It uses only names that both libraries have, which a test checks.
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
from dipgo_deploy.core.tensors import DTYPE_BYTES, MIB
from dipgo_deploy.trt.network import dtype_name

__all__ = ["EngineFile", "OpenEngine", "changed", "open_engine"]


@dataclass(frozen=True)
class EngineFile:
    """An engine file that preflight has checked.

    Attributes:
        path: the file.
        onnx: the graph with the weights of a stripped engine. None for an engine with its own weights.
        weight_bytes: bytes of the weights that are added when a stripped engine is loaded.
    """

    path: Path
    onnx: Path | None = None
    weight_bytes: int = 0

    @cached_property
    def bytes(self) -> int:
        """GPU memory of the engine, estimated from the size of its file."""
        return self.path.stat().st_size + self.weight_bytes


def changed(current: Mapping[str, int], addresses: Mapping[str, int]) -> dict[str, int]:
    """Addresses that differ from the current ones.

    Args:
        current: addresses by tensor, as the context has them.
        addresses: addresses by tensor, as the next call needs them.

    Returns:
        The part of ``addresses`` to set.
    """
    return {name: address for name, address in addresses.items() if current.get(name) != address}


@dataclass
class OpenEngine:
    """An engine and its one execution context.

    Attributes:
        name: of the graph.
        engine: the library's engine.
        context: the library's execution context.
        inputs: names of the tensors that the engine reads.
        outputs: bytes of every output at the batch that was set.
        activation_bytes: memory that a run needs in addition.
        addresses: addresses that the context has now.
        memory: address and size of the activations that the context has now.
    """

    name: str
    engine: Any = field(repr=False)
    context: Any = field(repr=False)
    inputs: frozenset[str]
    outputs: Mapping[str, int]
    activation_bytes: int
    addresses: dict[str, int] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set the address of every tensor. Addresses that the context already has are skipped."""
        for name, address in changed(self.addresses, addresses).items():
            # A graph whose constants were folded may not read the timestep at all.
            if name == TIMESTEP and name not in self.inputs:
                continue
            if not self.context.set_tensor_address(name, address):
                raise InputError(f"engine {self.name} takes no address for {name!r}: build the engine again")
            self.addresses[name] = address

    def use_memory(self, address: int, size: int) -> None:
        """Set the memory for activations.

        Args:
            address: of memory that no other engine uses at the same time.
            size: bytes.
        """
        if self.memory != (address, size):
            self.context.set_device_memory(address, size)
            self.memory = (address, size)

    def enqueue(self, stream: int) -> None:
        """Queue one run on a CUDA stream and return at once."""
        if not self.context.execute_async_v3(stream):
            raise InputError(f"engine {self.name} refused to run: see the log above, and build the engine again")


def open_engine(
    trt: Any, runtime: Any, name: str, file: EngineFile, shapes: Mapping[str, tuple[int, ...]], bytes_in_use: int
) -> OpenEngine:
    """Load an engine file, refit a stripped engine, and set the shapes of the inputs.

    Args:
        trt: the library, tensorrt or tensorrt_rtx.
        runtime: the library's runtime.
        name: of the graph.
        file: the engine.
        shapes: of the inputs.
        bytes_in_use: GPU memory that is in use already, for the error message.

    Returns:
        The engine, ready for addresses.

    Raises:
        InputError: the file is not an engine of this machine, or does not take the weights or the shapes.
        MissingError: not enough GPU memory.
    """
    engine = runtime.deserialize_cuda_engine(file.path.read_bytes())
    if engine is None:
        raise InputError(f"{file.path} cannot be loaded (see the log above): build the engine again on this machine")
    if file.onnx is not None:
        _refit(trt, engine, name, file.onnx)
    # The caller owns the memory for activations, because all engines of a program share it.
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise MissingError(
            f"not enough GPU memory for engine {name} ({bytes_in_use / MIB:.0f} MiB in use): lower gpu_memory so that "
            "other engines are evicted"
        )
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [tensor for tensor in names if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT]
    for tensor in inputs:
        _set_shape(engine, context, name, tensor, shapes)
    outputs = {}
    for tensor in names:
        if tensor not in inputs:
            element_bytes = DTYPE_BYTES[dtype_name(engine.get_tensor_dtype(tensor))]
            outputs[tensor] = prod(context.get_tensor_shape(tensor)) * element_bytes
    return OpenEngine(name, engine, context, frozenset(inputs), outputs, int(engine.device_memory_size_v2))


def _set_shape(engine: Any, context: Any, name: str, tensor: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if tensor not in shapes:
        raise InputError(f"engine {name} needs an input {tensor!r} that the program does not have: build it again")
    if not context.set_input_shape(tensor, shapes[tensor]):
        raise InputError(
            f"engine {name} takes shape {tuple(engine.get_tensor_shape(tensor))} for {tensor!r}, got {shapes[tensor]}: "
            "build it for this batch"
        )


def _refit(trt: Any, engine: Any, name: str, onnx: Path) -> None:
    """Give a stripped engine the weights of the graph that it was built from."""
    logger = trt.Logger(trt.Logger.WARNING)
    refitter = trt.Refitter(engine, logger)
    parser_refitter = trt.OnnxParserRefitter(refitter, logger)
    if not (parser_refitter.refit_from_file(str(onnx)) and refitter.refit_cuda_engine()):
        raise InputError(f"engine {name} does not take the weights of {onnx} (see the log above): build it again")

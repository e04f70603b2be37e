"""The TensorRT backend: graphs as engines, with slots, activations and scratch memory on the GPU.

1. An engine is loaded at its first call. It stays unless ``gpu_memory`` requires an eviction.
2. Engines run one after another and share one buffer for activations, as large as the largest engine needs.
3. Addresses are known when the program is bound. A call sets only addresses that differ from the engine's present ones.
4. Everything is queued on one stream. A trajectory copies nothing and waits only for the loading of engines.
5. Outputs that a call does not use go to scratch memory. The outputs of one graph never share scratch memory, because
   an engine may read its own outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.program import TIMESTEP, Run
from dipgo_deploy.core.tensors import MIB, TensorSpec
from dipgo_deploy.runtime.backend import BoundCall
from dipgo_deploy.runtime.engine_cache import EngineCache
from dipgo_deploy.runtime.memory import TorchMemory
from dipgo_deploy.runtime.streams import WorkStream, capture
from dipgo_deploy.runtime.tensorrt_engine import EngineFile, OpenEngine, open_engine

__all__ = ["TensorRTBackend"]


class TensorRTBackend(TorchMemory):
    """Runs the engines of a program.

    Args:
        trt: the library, tensorrt or tensorrt_rtx.
        engines: engines by graph, checked by preflight. A path is an engine with its own weights.
        gpu_memory: bytes for engines, slots, activations and scratch together. None sets no limit.
        reserve: bytes that activations and scratch will need, as far as known. They are kept free from the start.
        name: of the target, for messages.
        device: ``cuda``. Tests pass ``cpu`` and a library of their own.

    Raises:
        MissingError: there is no GPU.
    """

    def __init__(
        self,
        trt: Any,
        engines: Mapping[str, EngineFile | Path],
        *,
        gpu_memory: int | None = None,
        reserve: int = 0,
        name: str = "tensorrt",
        device: str = "cuda",
    ) -> None:
        super().__init__(device)
        self.name, self._trt = name, trt
        self._files = {graph: EngineFile(file) if isinstance(file, Path) else file for graph, file in engines.items()}
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._stream = WorkStream(device)
        self._gpu_memory, self._pinned, self._reserve = gpu_memory, 0, reserve
        self._cache: EngineCache | None = None
        self._engines: dict[str, OpenEngine] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self._activations = self._allocate_bytes(0)
        self._scratch: list[torch.Tensor] = []
        self._timesteps: dict[tuple[float, int], torch.Tensor] = {}

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
        """See Memory."""
        buffer = super().allocate(spec, sizes)
        self._pinned += buffer.nbytes
        return buffer

    def bind_run(self, run: Run, buffers: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> BoundCall:
        """See Backend. The engine is loaded at the first call."""
        graph = run.graph
        if graph not in self._files:
            raise InputError(f"the program runs graph {graph!r}, which has no engine: build the engines again")
        inputs = {name: buffers[slot] for name, slot in run.inputs}
        inputs[TIMESTEP] = self._timestep(run.timestep, sizes)
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        if self._shapes.setdefault(graph, shapes) != shapes:
            raise InputError(f"graph {graph} at step {run.step} takes other inputs than before: re-export")
        outputs = {name: buffers[slot] for name, slot in run.outputs}
        addresses = {name: int(buffer.data_ptr()) for name, buffer in (*inputs.items(), *outputs.items())}

        def call() -> None:
            loaded = self._engine(graph)
            loaded.bind(self._with_scratch(loaded, addresses))
            loaded.use_memory(int(self._activations.data_ptr()), self._activations.nbytes)
            loaded.enqueue(self._stream.handle)

        return call

    def load(self) -> None:
        """Load the engines of all bound runs, until ``gpu_memory`` would require an eviction."""
        for graph in (name for name in self._shapes if name not in self._engines):
            needed = self._pinned + max(self._reserve, self._shared_bytes) + self._engine_bytes
            if self._gpu_memory is not None and needed + self._files[graph].bytes > self._gpu_memory:
                return
            self._engine(graph)

    def running(self) -> AbstractContextManager[None]:
        """See Memory. Combinations and engines are queued on one stream."""
        return self._stream.running()

    def capture(self, calls: Sequence[BoundCall]) -> BoundCall:
        """See Memory. Raises UsageError if an engine was evicted: a CUDA graph cannot load engines."""
        if missing := [name for name in self._files if name not in self._engines]:
            raise UsageError(
                f"cuda_graph needs all {len(self._files)} engines in memory, but {missing[0]} was evicted: raise "
                "gpu_memory, or leave cuda_graph out"
            )
        return capture(calls, self._stream)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the engines in memory."""
        return tuple(self._engines)

    @property
    def device_bytes(self) -> int:
        """Bytes of slots, timesteps, activations, scratch and engines in memory."""
        return self._pinned + self._shared_bytes + self._engine_bytes

    @property
    def _shared_bytes(self) -> int:
        """Bytes of activations and scratch, which all engines share."""
        return self._activations.nbytes + sum(part.nbytes for part in self._scratch)

    @property
    def _engine_bytes(self) -> int:
        return self._cache.held_bytes if self._cache else 0

    def _engine(self, graph: str) -> OpenEngine:
        """The engine of a graph. It is loaded if it is not in memory."""
        if self._cache is None:  # Made at the first call, when all slots are allocated.
            self._cache = EngineCache(self._gpu_memory, self._pinned + self._reserve)
        size = self._files[graph].bytes
        evicted = self._cache.make_room(graph, size)
        if evicted is not None:
            self._evict(evicted)
            loaded = self._load(graph)
            self._cache.hold(graph, size)
            self._engines[graph] = loaded
            # Activations and scratch may have grown, which may evict further engines or refuse this one.
            try:
                self._cache.pin(self._pinned + max(self._reserve, self._shared_bytes))
            finally:
                self._evict([name for name in self._engines if name not in self._cache.names])
        return self._engines[graph]

    def _evict(self, names: Sequence[str]) -> None:
        if names:
            self._wait()  # Their last calls may still be queued.
        for name in names:
            del self._engines[name]

    def _load(self, graph: str) -> OpenEngine:
        file, shapes = self._files[graph], self._shapes[graph]
        loaded = open_engine(self._trt, self._runtime, graph, file, shapes, self.device_bytes)
        if loaded.activation_bytes > self._activations.nbytes:
            self._wait()
            self._activations = self._allocate_bytes(loaded.activation_bytes)
        for index, size in enumerate(loaded.outputs.values()):
            if index == len(self._scratch):
                self._scratch.append(self._allocate_bytes(0))
            if size > self._scratch[index].nbytes:
                self._wait()
                self._scratch[index] = self._allocate_bytes(size)
        return loaded

    def _with_scratch(self, loaded: OpenEngine, addresses: Mapping[str, int]) -> Mapping[str, int]:
        """Addresses of all tensors. Outputs that the call does not use get scratch memory."""
        if addresses.keys() >= loaded.outputs.keys():
            return addresses
        scratch = zip(loaded.outputs, self._scratch, strict=False)
        unused = {name: int(part.data_ptr()) for name, part in scratch if name not in addresses}
        return {**addresses, **unused}

    def _timestep(self, timestep: float, sizes: Mapping[str, int]) -> torch.Tensor:
        key = (timestep, sizes["rows"])
        if key not in self._timesteps:
            buffer = self.allocate(TensorSpec(TIMESTEP, ("rows",), "float32"), sizes)
            self.write(buffer, np.full(sizes["rows"], timestep, np.float32))
            self._timesteps[key] = buffer
        return self._timesteps[key]

    def _allocate_bytes(self, count: int) -> torch.Tensor:
        try:
            return torch.empty(count, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:
            raise MissingError(
                f"not enough GPU memory for {count / MIB:.0f} MiB of activations: lower gpu_memory so that engines "
                "are evicted, or generate fewer images at once"
            ) from None

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

"""Graphs as TensorRT engines: slots, one activation buffer and the addresses of both, all on the device.

1. An engine is loaded at its first call and stays, unless ``gpu_memory`` makes the least recently used one go.
2. Engines run one after another, so all share one activation buffer, as large as the one that needs most.
3. Addresses are known when the program is bound; a call sets those that its engine does not hold already.
4. Everything goes to one stream. Nothing is copied and nobody waits inside a trajectory, but for the loading of 1.
5. An output that a call does not want is written to scratch: a buffer for each of a graph's outputs, none shared within
   a graph, since an engine may read its own outputs.
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
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.runtime.backend import BoundCall
from dipgo_deploy.runtime.engine_cache import EngineCache
from dipgo_deploy.runtime.memory import TorchMemory
from dipgo_deploy.runtime.streams import WorkStream, capture
from dipgo_deploy.runtime.tensorrt_engine import EngineFile, OpenEngine, open_engine

__all__ = ["TensorRTBackend"]


class TensorRTBackend(TorchMemory):
    """Runs the engines of a program.

    Args:
        trt: the module, tensorrt or tensorrt_rtx.
        engines: each graph's engine by its name, past preflight; a path stands for a file with its weights.
        gpu_memory: bytes that engines, slots, activations and scratch may take together; None for no limit.
        reserve: bytes of activations and scratch that the engines will need, as far as known, kept free from the start.
        name: of the target, for messages.
        device: ``cuda``; tests with a library of their own run on ``cpu``.

    Raises MissingError without a GPU.
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
        self._files = {graph: EngineFile(one) if isinstance(one, Path) else one for graph, one in engines.items()}
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._stream = WorkStream(device)
        self._budget, self._pinned, self._reserve = gpu_memory, 0, reserve
        self._residency: EngineCache | None = None
        self._open: dict[str, OpenEngine] = {}
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self._activations = self._bytes(0)
        self._scratch: list[torch.Tensor] = []
        self._timesteps: dict[tuple[float, int], torch.Tensor] = {}

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
        """See Memory."""
        buffer = super().allocate(spec, sizes)
        self._pinned += buffer.nbytes
        return buffer

    def bind_run(self, run: Run, buffers: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> BoundCall:
        """See Backend. The engine itself is loaded at the first call."""
        if run.graph not in self._files:
            raise InputError(
                f"the program runs graph {run.graph!r}, for which there is no engine: build the engines again"
            )
        given = {name: buffers[slot] for name, slot in run.inputs}
        given[TIMESTEP] = self._timestep(run.timestep, sizes)
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        if self._shapes.setdefault(run.graph, shapes) != shapes:
            raise InputError(f"graph {run.graph} at step {run.step} takes other inputs than before: re-export")
        wanted = {name: buffers[slot] for name, slot in run.outputs}
        addresses = {name: int(buffer.data_ptr()) for name, buffer in (*given.items(), *wanted.items())}
        graph = run.graph

        def act() -> None:
            opened = self._opened(graph)
            opened.bind(self._with_scratch(opened, addresses))
            opened.use_memory(int(self._activations.data_ptr()), self._activations.nbytes)
            opened.enqueue(self._stream.handle)

        return act

    def load(self) -> None:
        """Load the engines of all runs that are bound, until ``gpu_memory`` would make one of them go."""
        for graph in (name for name in self._shapes if name not in self._open):
            held = self._residency.held_bytes if self._residency else 0
            needed = self._pinned + max(self._reserve, self._work_bytes) + held + self._files[graph].bytes
            if self._budget is not None and needed > self._budget:
                return
            self._opened(graph)

    def running(self) -> AbstractContextManager[None]:
        """See Backend: combinations and engines on one stream."""
        return self._stream.running()

    def captured(self, acts: Sequence[BoundCall]) -> BoundCall:
        """See Backend. Raises UsageError where engines make way for each other."""
        if missing := [name for name in self._files if name not in self._open]:
            raise UsageError(
                f"cuda_graph needs all {len(self._files)} engines in memory, {missing[0]} was evicted: raise "
                "gpu_memory, or leave cuda_graph out"
            )
        return capture(acts, self._stream)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the engines in memory."""
        return tuple(self._open)

    @property
    def device_bytes(self) -> int:
        """Bytes of slots, timesteps, activations, scratch, and of the files of the engines in memory."""
        held = self._residency.held_bytes if self._residency else 0
        return self._pinned + self._work_bytes + held

    @property
    def _work_bytes(self) -> int:
        return self._activations.nbytes + sum(part.nbytes for part in self._scratch)

    def _opened(self, graph: str) -> OpenEngine:
        if self._residency is None:  # slots are all allocated by now
            self._residency = EngineCache(self._budget, self._pinned + self._reserve)
        size = self._files[graph].bytes
        gone = self._residency.make_room(graph, size)
        if gone is not None:
            self._give_up(gone)
            opened = self._load(graph)
            self._residency.hold(graph, size)
            self._open[graph] = opened
            try:
                self._residency.pin(self._pinned + max(self._reserve, self._work_bytes))
            finally:
                self._give_up([name for name in self._open if name not in self._residency.names])
        return self._open[graph]

    def _give_up(self, gone: Sequence[str]) -> None:
        if gone:
            self._wait()  # what they compute may still be queued
        for name in gone:
            del self._open[name]

    def _load(self, graph: str) -> OpenEngine:
        opened = open_engine(
            self._trt, self._runtime, graph, self._files[graph], self._shapes[graph], self.device_bytes
        )
        if opened.activation_bytes > self._activations.nbytes:
            self._wait()
            self._activations = self._bytes(opened.activation_bytes)
        for index, size in enumerate(opened.outputs.values()):
            if index == len(self._scratch):
                self._scratch.append(self._bytes(0))
            if size > self._scratch[index].nbytes:
                self._wait()
                self._scratch[index] = self._bytes(size)
        return opened

    def _with_scratch(self, opened: OpenEngine, addresses: Mapping[str, int]) -> Mapping[str, int]:
        """Addresses of all tensors: outputs that the call leaves out go to scratch."""
        if addresses.keys() >= opened.outputs.keys():
            return addresses
        scratch = zip(opened.outputs, self._scratch, strict=False)
        left = {name: int(part.data_ptr()) for name, part in scratch if name not in addresses}
        return {**addresses, **left}

    def _timestep(self, timestep: float, sizes: Mapping[str, int]) -> torch.Tensor:
        key = (timestep, sizes["rows"])
        if key not in self._timesteps:
            buffer = self.allocate(TensorSpec(TIMESTEP, ("rows",), "float32"), sizes)
            self.write(buffer, np.full(sizes["rows"], timestep, np.float32))
            self._timesteps[key] = buffer
        return self._timesteps[key]

    def _bytes(self, count: int) -> torch.Tensor:
        try:
            return torch.empty(count, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:
            raise MissingError(
                f"not enough GPU memory for {count / 2**20:.0f} MiB of activations: lower gpu_memory so that engines "
                "are evicted, or generate fewer images at once"
            ) from None

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

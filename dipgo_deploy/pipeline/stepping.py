"""Run a bundle one step at a time, for a pipeline that calls its scheduler itself.

A run may start at any step, as image-to-image does. The schedule is compiled once for every such start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dipgo_deploy.bundle.bundle import Bundle, CompiledProgram
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.lowering import StepProgram
from dipgo_deploy.pipeline.calls import RefusedCall
from dipgo_deploy.pipeline.checks import CallSizes
from dipgo_deploy.runtime.backend import Backend, BoundCall
from dipgo_deploy.runtime.open import make_backend, open_engines
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend

__all__ = ["StepPrograms", "StepSession"]


class StepSession:
    """A step program bound to buffers, for one batch size and one text length.

    Args:
        steps: the program and the slot of every step's prediction.
        backend: holds the graphs.
        sizes: of a run.
    """

    def __init__(self, steps: StepProgram, backend: Backend, sizes: CallSizes) -> None:
        program = steps.program
        self._session, self._backend = Session(program, backend, sizes.batch, sizes=dict(sizes.free)), backend
        self._latent = self._session.buffer(program.noise)
        self._conditioning = {name: self._session.buffer(slot) for name, slot in program.conditioning}
        self._predictions = [self._session.buffer(slot) for slot in steps.predictions]
        self._calls: list[list[BoundCall]] = [[] for _ in steps.predictions]
        for call, bound_call in zip(program.calls, self._session.calls, strict=True):
            self._calls[call.step].append(bound_call)

    def load(self) -> None:
        """Load the engines now, as far as they fit, and not at the first calls."""
        if isinstance(self._backend, TensorRTBackend):
            self._backend.load()

    def set_conditioning(self, conditioning: Mapping[str, torch.Tensor]) -> None:
        """Copy the conditioning of a run into its slots."""
        for name, buffer in self._conditioning.items():
            _fill(buffer, conditioning[name])

    def predict(self, step: int, latent: torch.Tensor) -> torch.Tensor:
        """The prediction of a step. No graph runs if the schedule reuses an earlier prediction.

        Args:
            step: counted from the program's own start.
            latent: the network's input (rows, C, ...).

        Returns:
            A new tensor (rows, C or 2C, ...).
        """
        if self._calls[step]:
            _fill(self._latent, latent)
            # The backend's stream waits for the pipeline's work so far, and the pipeline's later work waits for it.
            with self._backend.running():
                for call in self._calls[step]:
                    call()
        prediction = self._predictions[step]
        # Copied, because the slot is overwritten by later steps.
        return torch.from_numpy(prediction.copy()) if isinstance(prediction, np.ndarray) else prediction.clone()


class StepPrograms:
    """Compiles a bundle's schedule for runs that start at any step. Engines are opened once for all sizes of a run.

    Args:
        bundle: the bundle.
        run: backend, device and how the graphs run.

    Raises:
        UsageError: ``cuda_graph`` or ``compiler``, which are for whole runs.
    """

    def __init__(self, bundle: Bundle, run: RunOptions) -> None:
        for name, value in {"cuda_graph": run.cuda_graph, "compiler": run.compiler}.items():
            if value:
                raise UsageError(f"{name} is for whole runs, but a pipeline makes single steps: leave it out")
        self._bundle, self._run = bundle, run
        self._compiled: dict[tuple[int, CallSizes | None], tuple[StepProgram, Backend]] = {}
        self._ready: dict[tuple[int, CallSizes], StepSession] = {}

    def prepare(self, start: int, sizes: CallSizes) -> None:
        """Make a session and load its engines, as far as they fit, before a run starts.

        Args:
            start: the step at which runs start.
            sizes: of a run.

        Raises:
            RefusedCall: see ``session``.
        """
        if (start, sizes) not in self._ready:
            self._ready[start, sizes] = self.session(start, sizes)
            self._ready[start, sizes].load()

    def session(self, start: int, sizes: CallSizes) -> StepSession:
        """A session with buffers of its own. Graphs and engines are shared.

        Args:
            start: the step at which runs start.
            sizes: of a run.

        Returns:
            The session that ``prepare`` made, or a new one.

        Raises:
            RefusedCall: a late start on engines, which are built for whole runs, or sizes that engines do not take.
            MissingError: the device or a library is missing.
            InputError: engines are missing or do not fit this machine.
        """
        if (start, sizes) in self._ready:
            return self._ready.pop((start, sizes))
        key = (start, sizes if self._run.on_engines else None)
        if key not in self._compiled:
            self._compiled[key] = self._open(start, sizes) if self._run.on_engines else self._compile(start)
        return StepSession(*self._compiled[key], sizes)

    def _compile(self, start: int) -> tuple[StepProgram, Backend]:
        bundle, is_live = self._bundle, self._run.backend == "torch"
        steps = bundle.lower_steps(start, "subnets" if is_live else None)
        graphs = {} if is_live else bundle.graphs_for(steps.program)
        return steps, make_backend(bundle, CompiledProgram(steps.program, graphs), self._run)

    def _open(self, start: int, sizes: CallSizes) -> tuple[StepProgram, Backend]:
        if start:
            raise RefusedCall(
                f"engines of {self._run.backend} are built for whole runs, this run starts at step {start}: use "
                "backend onnxruntime, or fallback=True"
            )
        try:
            _, steps, backend = open_engines(self._bundle, sizes.batch, self._run, dict(sizes.free))
        except UsageError as refusal:  # The preflight refuses sizes that the engines were not built for.
            raise RefusedCall(str(refusal)) from None
        return steps, backend


def _fill(buffer: Any, tensor: torch.Tensor) -> None:
    """Copy a tensor of any device and dtype into the memory of a slot."""
    if isinstance(buffer, np.ndarray):
        torch.from_numpy(buffer).copy_(tensor)
    else:
        buffer.copy_(tensor)

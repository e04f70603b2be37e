"""The graphs of a bundle, a step at a time: programs compiled once for every step at which runs begin."""

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
from dipgo_deploy.runtime.backend import Backend, BoundCall
from dipgo_deploy.runtime.open import make_backend, open_engines
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend

__all__ = ["StepPrograms", "StepSession"]


class StepSession:
    """A step program bound to buffers for one batch size; steps count from the program's own start."""

    def __init__(self, steps: StepProgram, runner: Backend, batch: int) -> None:
        program = steps.program
        self._session, self._runner = Session(program, runner, batch), runner
        self._latent = self._session.buffer(program.noise)
        self._conditioning = {name: self._session.buffer(slot) for name, slot in program.conditioning}
        self._predictions = [self._session.buffer(slot) for slot in steps.predictions]
        self._acts: list[list[BoundCall]] = [[] for _ in steps.predictions]
        for call, act in zip(program.calls, self._session.calls, strict=True):
            self._acts[call.step].append(act)

    def load(self) -> None:
        """Load what would be loaded at the first calls, as far as it fits."""
        if isinstance(self._runner, TensorRTBackend):
            self._runner.load()

    def give(self, conditioning: Mapping[str, torch.Tensor]) -> None:
        """Put the conditioning of a run into its slots."""
        for name, buffer in self._conditioning.items():
            _fill(buffer, conditioning[name])

    def predict(self, step: int, latent: torch.Tensor) -> torch.Tensor:
        """The prediction (rows, C or 2C, …) of a step for the network's input (rows, C, …); a new tensor.

        Where the schedule holds an earlier prediction no graph is called.
        """
        if self._acts[step]:
            _fill(self._latent, latent)
            # A backend's own stream waits for what came before, and what comes after waits for it.
            with self._runner.running():
                for act in self._acts[step]:
                    act()
        found = self._predictions[step]
        return torch.from_numpy(found.copy()) if isinstance(found, np.ndarray) else found.clone()


class StepPrograms:
    """Compiles a bundle's schedule for runs that begin at any step, once each; engines, which are built, once a batch.

    Raises what ``runtime.open_session`` raises, on first use.
    """

    def __init__(self, bundle: Bundle, run: RunOptions) -> None:
        for name, value in {"cuda_graph": run.cuda_graph, "compiler": run.compiler}.items():
            if value:
                raise UsageError(f"{name} is for whole runs, a pipeline calls step by step: leave it out")
        self._bundle, self._run = bundle, run
        self._compiled: dict[tuple[int, int | None], tuple[StepProgram, Backend]] = {}
        self._ready: dict[tuple[int, int], StepSession] = {}

    def prepare(self, start: int, batch: int) -> None:
        """Have a session of ``session`` ready before a run asks for it, with its engines in memory as far as they fit.

        Raises what ``session`` raises.
        """
        if (start, batch) not in self._ready:
            self._ready[start, batch] = self.session(start, batch)
            self._ready[start, batch].load()

    def session(self, start: int, batch: int) -> StepSession:
        """New buffers for runs of ``batch`` images that begin at step ``start``. The graphs are shared.

        Raises RefusedCall for a late start on engines, which are built for whole runs, and for a batch that they do not
        take.
        """
        if (start, batch) in self._ready:
            return self._ready.pop((start, batch))
        key = (start, batch if self._run.on_engines else None)
        if key not in self._compiled:
            self._compiled[key] = self._open(start, batch) if self._run.on_engines else self._compile(start)
        return StepSession(*self._compiled[key], batch)

    def _compile(self, start: int) -> tuple[StepProgram, Backend]:
        bundle, is_live = self._bundle, self._run.backend == "torch"
        steps = bundle.lower_steps(start, "subnets" if is_live else None)
        graphs = {} if is_live else bundle.graphs_for(steps.program)
        return steps, make_backend(bundle, CompiledProgram(steps.program, graphs), self._run)

    def _open(self, start: int, batch: int) -> tuple[StepProgram, Backend]:
        if start:
            raise RefusedCall(
                f"engines of {self._run.backend} are built for whole runs, this run begins at step {start}: use "
                "backend onnxruntime, or fallback=True"
            )
        try:
            _, steps, backend = open_engines(self._bundle, batch, self._run)
        except UsageError as refusal:  # The preflight refuses a batch that the engines were not built for.
            raise RefusedCall(str(refusal)) from None
        return steps, backend


def _fill(buffer: Any, tensor: torch.Tensor) -> None:
    """Copy a tensor of any device and dtype into a slot."""
    if isinstance(buffer, np.ndarray):
        own = torch.from_numpy(buffer)
        own.copy_(tensor)
    else:
        buffer.copy_(tensor)

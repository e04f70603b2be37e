"""The graphs of a bundle, a step at a time: programs compiled once for every step at which runs begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dipgo_deploy.lowering import StepProgram
from dipgo_deploy.runtime.backend import Act, Backend
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.loaded import BackendName, Compiled, LoadedBundle

__all__ = ["StepOptions", "StepPrograms", "StepSession"]


@dataclass(frozen=True)
class StepOptions:
    """Where the graphs run: backend, ``cpu`` or ``cuda``, threads within an operator (None: the backend's choice)."""

    backend: BackendName = "onnxruntime"
    device: str = "cpu"
    threads: int | None = None


class StepSession:
    """A step program bound to buffers for one batch size; steps count from the program's own start."""

    def __init__(self, steps: StepProgram, runner: Backend, batch: int) -> None:
        program = steps.program
        self._session = Session(program, runner, batch)
        self._latent = self._session.buffer(program.noise)
        self._conditioning = {name: self._session.buffer(slot) for name, slot in program.conditioning}
        self._predictions = [self._session.buffer(slot) for slot in steps.predictions]
        self._acts: list[list[Act]] = [[] for _ in steps.predictions]
        for call, act in zip(program.calls, self._session.calls, strict=True):
            self._acts[call.step].append(act)

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
        for act in self._acts[step]:
            act()
        found = self._predictions[step]
        return torch.from_numpy(found.copy()) if isinstance(found, np.ndarray) else found.clone()


class StepPrograms:
    """Compiles a bundle's schedule for runs that begin at any step, once each.

    Raises what ``LoadedBundle.runner`` raises, on first use.
    """

    def __init__(self, bundle: LoadedBundle, options: StepOptions) -> None:
        self._bundle, self._options = bundle, options
        self._compiled: dict[int, tuple[StepProgram, Backend]] = {}

    def session(self, start: int, batch: int) -> StepSession:
        """New buffers for runs of ``batch`` images that begin at step ``start``; the graphs are shared."""
        if start not in self._compiled:
            self._compiled[start] = self._compile(start)
        return StepSession(*self._compiled[start], batch)

    def _compile(self, start: int) -> tuple[StepProgram, Backend]:
        bundle, options = self._bundle, self._options
        is_live = options.backend == "torch"
        steps = bundle.lower_steps(start, "subnets" if is_live else None)
        graphs = {} if is_live else bundle.graphs_for(steps.program)
        compiled = Compiled(steps.program, graphs)
        return steps, bundle.runner(compiled, options.backend, threads=options.threads, device=options.device)


def _fill(buffer: Any, tensor: torch.Tensor) -> None:
    """Copy a tensor of any device and dtype into a slot."""
    if isinstance(buffer, np.ndarray):
        own = torch.from_numpy(buffer)
        own.copy_(tensor)
    else:
        buffer.copy_(tensor)

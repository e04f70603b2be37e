"""The contenders of a bench: the full model, schedules, and plain samplers on the same full network.

All contenders run in one process, on ONNX Runtime or PyTorch. Engines exist only for schedules, so next to engines
the full network runs on ONNX Runtime, and every row names its backend. The full network has one graph under every
sampler, which is cut and loaded once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from dipgo_deploy.bench.entries import FULL, Entry
from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.report import Kind
from dipgo_deploy.bundle import Bundle, CompiledProgram
from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import DipgoError, InputError, UsageError
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.sampler import SamplerReading
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.lowering import lower
from dipgo_deploy.models import sampler_spec
from dipgo_deploy.models.full_run import full_run_of
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.sampler_variants import SPACINGS
from dipgo_deploy.runtime.backend import Backend
from dipgo_deploy.runtime.generate import Inputs, run_inputs
from dipgo_deploy.runtime.open import engine_records, make_backend, open_session
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.trt.target import load_target

__all__ = ["Contender", "FullNetwork", "Start", "measure_start"]

_CONVERGED = ("ddim", "flow-euler")


@dataclass(frozen=True)
class Start:
    """The cost of a start. The fields are those of a Row."""

    first_image_ms: float | None = None
    device_bytes: int | None = None
    build_seconds: float | None = None
    engine_bytes: int | None = None


@dataclass(frozen=True)
class Contender:
    """A named session, ready to run one batch. ``backend`` is ``onnxruntime-cpu``, ``rtx`` and so on."""

    name: str
    kind: Kind
    session: Session
    backend: str
    start: Start = Start()

    @property
    def program(self) -> Program:
        """The program of the session."""
        return self.session.program


class FullNetwork:
    """The whole network of a bundle's model under any sampler: one graph, one inference session.

    Raises:
        UsageError: a batch or a guidance scale outside the contract.
        MissingError: a missing device.
    """

    def __init__(self, bundle: Bundle, options: BenchOptions) -> None:
        self.bundle, self.options = bundle, options
        self.contract = bundle.manifest.contract
        self.guidance_scale = self.contract.guidance_scale(options.guidance_scale)

    def schedule(self, entry: Entry) -> Contender:
        """A schedule on its own backend."""
        run = self.options.run
        session, start = measure_start(
            lambda: open_session(
                entry.bundle, self.options.batch, run, guidance_scale=self.guidance_scale, compiled=entry.compiled
            ),
            self._inputs,
            run.device,
        )
        if run.on_engines:
            records = engine_records(entry.bundle, load_target(run.backend, "run"))
            seconds, size = sum(record.seconds for record in records), sum(record.bytes for record in records)
            start = replace(start, build_seconds=seconds, engine_bytes=size)
        backend = run.backend if run.on_engines else f"{run.backend}-{run.device}"
        return Contender(entry.name, "schedule", session, backend, start)

    def full(self) -> Contender:
        """The full run of the bundle's contract. For a learned sampler, the run that it stands in for."""
        session, start = measure_start(
            lambda: self.session(full_run_of(self.contract.sampler)), self._inputs, self.options.run.device
        )
        return Contender(FULL, "full", session, self.backend_name, start)

    def sampler(self, name: str, spec: SamplerSpec, reading: SamplerReading) -> Contender:
        """A plain sampler as a contender.

        Args:
            name: of the row.
            spec: the sampler.
            reading: the coefficients of the sampler.

        Returns:
            The contender, without the cost of a start, since the network is loaded already.
        """
        return Contender(name, "sampler", self.session(spec, reading), self.backend_name)

    def session(self, spec: SamplerSpec, reading: SamplerReading | None = None) -> Session:
        """A session that computes every call of a sampler in full.

        Args:
            spec: the sampler.
            reading: the coefficients, read off the sampler by default.

        Returns:
            The session, on the one inference session of this network.

        Raises:
            InputError: the network has another graph under this sampler.
        """
        program = self._lower(spec, reading or read_sampler(spec))
        if program.graphs != self._own_program.graphs:
            raise InputError(f"the full network differs under {spec.class_name}: re-export the bundle")
        # ONNX Runtime captures its CUDA graphs by itself, one per call.
        replays_program = self.options.run.cuda_graph and self.options.run.backend == "torch"
        return Session(program, self._backend, self.options.batch, self.guidance_scale, cuda_graph=replays_program)

    def converged_session(self, calls: int) -> Session:
        """DDIM with ``calls`` network calls, or nearly as many as the model's noise schedule allows.

        Models of flow matching take Euler steps. Raises the sampler's own error if no number of calls works.
        """
        refusal: DipgoError = UsageError(f"no sampler makes converged_calls {calls} network calls: lower the number")
        # With as many calls as training timesteps, every spacing means all timesteps, but some spacings step past the
        # end. One call less, or half the calls, fits then.
        for count, name, spacing in product((calls, calls - 1, calls // 2), _CONVERGED, reversed(SPACINGS)):
            overrides = {"timestep_spacing": spacing} if name == "ddim" else {}
            try:
                spec = sampler_spec(name, max(1, count), self.scheduler_config, overrides)
                return self.session(spec, read_sampler(spec))
            except (UsageError, InputError) as error:
                refusal = error
        raise refusal

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The model's own noise schedule."""
        return self.bundle.model.scheduler_config

    @property
    def backend_name(self) -> str:
        """The backend of the full network, which is never an engine: engines exist only for schedules."""
        backend = "onnxruntime" if self.options.run.on_engines else self.options.run.backend
        return f"{backend}-{self.options.run.device}"

    @cached_property
    def _own_program(self) -> Program:
        return self._lower(self.contract.sampler, read_sampler(self.contract.sampler))

    @cached_property
    def _inputs(self) -> Inputs:
        """Noise and conditioning of one batch."""
        # A copy of the bundle loads the model for the inputs, so that a start counts only what its own run loads.
        return run_inputs(replace(self.bundle).model, self.contract, range(self.options.batch))

    @cached_property
    def _backend(self) -> Backend:
        run = self.options.run
        if run.on_engines:
            run = RunOptions("onnxruntime", run.device, run.threads, run.cuda_graph)
        if run.backend == "torch":
            return make_backend(self.bundle, CompiledProgram(self._own_program, {}), run)
        return make_backend(self.bundle, self.bundle.compile(self._schedule(self.contract.sampler)), run)

    def _schedule(self, spec: SamplerSpec) -> Schedule:
        own = self.bundle.schedule
        return full_schedule(replace(self.contract, sampler=spec), own.granularity, own.kind, own.blocks)

    def _lower(self, spec: SamplerSpec, reading: SamplerReading) -> Program:
        return lower(self._schedule(spec), self.bundle.blocks, reading)


def measure_start(open_session: Callable[[], Session], inputs: Inputs, device: str) -> tuple[Session, Start]:
    """Open a session, draw one batch, and measure both together.

    Args:
        open_session: opens the session.
        inputs: noise and conditioning of one batch.
        device: whose memory is measured, ``cpu`` or ``cuda``.

    Returns:
        The session, and the time and the GPU memory of its start.
    """
    bytes_before = _free_bytes(device)
    began = time.perf_counter()
    session = open_session()
    session.run(*inputs, seed=0)
    first_image_ms = 1e3 * (time.perf_counter() - began)
    bytes_after = _free_bytes(device)
    if bytes_before is None or bytes_after is None:
        return session, Start(first_image_ms)
    return session, Start(first_image_ms, max(0, bytes_before - bytes_after))


def _free_bytes(device: str) -> int | None:
    """Free memory of the GPU according to its driver, which counts allocations of all libraries."""
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    return int(torch.cuda.mem_get_info()[0])

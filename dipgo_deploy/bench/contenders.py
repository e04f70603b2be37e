"""The contenders of a bench: the full model, schedules, and plain samplers on the same full network.

All run in one process, on ONNX Runtime or PyTorch; where schedules run as engines, the full network, which no engine
was built of, runs on ONNX Runtime, and every row names its backend. The full network's graph is one and the same under
every sampler: it is cut and loaded once.
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
from dipgo_deploy.bench.variants import SPACINGS
from dipgo_deploy.bundle import Bundle
from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import DipgoError, InputError, UsageError
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.sampler import SamplerReading
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.lowering import lower
from dipgo_deploy.models import sampler_spec
from dipgo_deploy.models.sampler_reading import read_sampler
from dipgo_deploy.runtime.backend import Backend
from dipgo_deploy.runtime.generate import Inputs, run_inputs
from dipgo_deploy.runtime.open import engine_records, onnxruntime_class, open_session
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.torch_backend import TorchBackend
from dipgo_deploy.trt.target import load_target

__all__ = ["Contender", "FullNetwork", "Start", "started"]

_CONVERGED = ("ddim", "flow-euler")


@dataclass(frozen=True)
class Start:
    """What it took to begin; the fields are those of a Row."""

    first_image_ms: float | None = None
    device_bytes: int | None = None
    build_seconds: float | None = None
    engine_bytes: int | None = None


@dataclass(frozen=True)
class Contender:
    """A named program, bound and ready to run ``batch`` images; ``backend`` is ``onnxruntime-cpu``, ``rtx``, …."""

    name: str
    kind: Kind
    session: Session
    backend: str
    start: Start = Start()

    @property
    def program(self) -> Program:
        """What it runs."""
        return self.session.program


class FullNetwork:
    """The whole network of a bundle's model under any sampler: one graph, one inference session.

    Raises UsageError for a batch outside the contract or an unknown device, MissingError for a missing device.
    """

    def __init__(self, bundle: Bundle, options: BenchOptions) -> None:
        self.bundle, self.options = bundle, options
        self.contract = bundle.manifest.contract
        self.guidance_scale = self.contract.guidance_scale(options.guidance_scale)

    def schedule(self, entry: Entry) -> Contender:
        """An entry's program on a backend of its own."""
        options = self.options
        session, start = started(
            lambda: open_session(
                entry.bundle,
                options.batch,
                RunOptions(
                    options.backend,
                    options.device,  # type: ignore[arg-type]
                    options.threads,
                    options.cuda_graph,
                    options.compiler,
                    options.gpu_memory,
                    options.trust_engines,
                ),
                guidance_scale=self.guidance_scale,
                compiled=entry.compiled,
            ),
            self._inputs,
            options.device,
        )
        if options.on_engines:
            records = engine_records(entry.bundle, load_target(options.backend, "run"))
            seconds, size = sum(one.seconds for one in records), sum(one.bytes for one in records)
            start = replace(start, build_seconds=seconds, engine_bytes=size)
        backend = options.backend if options.on_engines else f"{options.backend}-{options.device}"
        return Contender(entry.name, "schedule", session, backend, start)

    def full(self) -> Contender:
        """The full run of the bundle's contract."""
        session, start = started(lambda: self.session(self.contract.sampler), self._inputs, self.options.device)
        return Contender(FULL, "full", session, self._backend_name, start)

    def sampler(self, name: str, spec: SamplerSpec, reading: SamplerReading) -> Contender:
        """A plain sampler."""
        return Contender(name, "sampler", self.session(spec, reading), self._backend_name)

    def session(self, spec: SamplerSpec, reading: SamplerReading | None = None) -> Session:
        """Every call of ``spec`` computed in full."""
        program = self._lower(spec, reading or read_sampler(spec))
        if program.graphs != self._own.graphs:
            raise InputError(f"the full network differs under {spec.class_name}: export the bundle again")
        whole = self.options.cuda_graph and self.options.backend == "torch"
        return Session(program, self._backend, self.options.batch, self.guidance_scale, cuda_graph=whole)

    def converged_session(self, calls: int) -> Session:
        """DDIM with ``calls`` network calls, or nearly as many as the model's noise schedule allows.

        At as many calls as training timesteps every spacing means all of them, but some step past the end. Models of
        flow matching take Euler steps. Raises the sampler's refusal where nothing works.
        """
        refusal: DipgoError = UsageError(f"no converged run of {calls} calls can be made: ask for fewer")
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
    def _backend_name(self) -> str:
        """Of the full network: ONNX Runtime where schedules run as engines, which only bundles have."""
        backend = "onnxruntime" if self.options.on_engines else self.options.backend
        return f"{backend}-{self.options.device}"

    @cached_property
    def _own(self) -> Program:
        return self._lower(self.contract.sampler, read_sampler(self.contract.sampler))

    @cached_property
    def _inputs(self) -> Inputs:
        """Of one batch. A copy of the bundle loads the model that makes them: a start counts what its own run needs."""
        return run_inputs(replace(self.bundle).model, self.contract, range(self.options.batch))

    @cached_property
    def _backend(self) -> Backend:
        options = self.options
        if options.backend == "torch":
            bundle = self.bundle
            return TorchBackend(
                bundle.model, bundle.blocks, self._own, device=options.device, compiler=options.compiler
            )
        graphs = self.bundle.compile(self._schedule(self.contract.sampler)).graphs
        return onnxruntime_class()(
            graphs,
            self.bundle.denoiser,
            threads=options.threads,
            device=options.device,
            cuda_graph=options.cuda_graph and options.device == "cuda",
        )

    def _schedule(self, spec: SamplerSpec) -> Schedule:
        own = self.bundle.schedule
        return full_schedule(replace(self.contract, sampler=spec), own.granularity, own.kind, own.blocks)

    def _lower(self, spec: SamplerSpec, reading: SamplerReading) -> Program:
        return lower(self._schedule(spec), self.bundle.blocks, reading)


def started(make: Callable[[], Session], inputs: Inputs, device: str) -> tuple[Session, Start]:
    """A session and what it took to make it and draw one batch with it; the GPU memory is that of its device."""
    before = _free_bytes(device)
    began = time.perf_counter()
    session = make()
    session.run(*inputs, seed=0)
    took = 1e3 * (time.perf_counter() - began)
    after = _free_bytes(device)
    return session, Start(took, None if before is None or after is None else max(0, before - after))


def _free_bytes(device: str) -> int | None:
    """Free memory of the GPU as its driver says, whatever library holds the rest."""
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    return int(torch.cuda.mem_get_info()[0])

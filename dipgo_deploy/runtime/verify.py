"""Verify: the fast path judged by the slow one, rung by rung, on real trajectories; and the schedule by the full run.

Compile error and schedule error are two numbers, never one. Every rung compares with ``max |a - b|`` over the largest
reference value of the slot: *local*, where each graph is fed the reference's slots, and *free-running*, over the whole
trajectory. The first slot and step that part are named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.precision import is_half
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.runtime.deviation import Deviation, Recording, local_deviations, recorded, relative_difference
from dipgo_deploy.runtime.fidelity import psnr_db
from dipgo_deploy.runtime.half_export import in_float32, own_variant
from dipgo_deploy.runtime.inputs import run_inputs
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.loaded import BackendName, Compiled, LoadedBundle
from dipgo_deploy.runtime.torch_backend import TorchBackend
from dipgo_deploy.supernet.rollout import last_latent, reference_trajectory

__all__ = ["EXACT", "Rung", "VerifyOptions", "VerifyReport", "local_tolerance", "verify"]

_SINGLE, _HALF = (1e-4, 1e-3), (2e-2, 1e-1)
"""Local and free-running tolerance of float32, and of half precision."""

EXACT = 1e-5
"""Tolerance of the second rung, relative to the largest value: two ways to say the same in float32."""


@dataclass(frozen=True)
class VerifyOptions:
    """Images, seed and guidance scale of the trajectories; tolerances relative to the slot's largest value.

    ``None`` for a tolerance takes the dtype's: 1e-4 local and 1e-3 free-running for float32, 2e-2 and 1e-1 for half.
    ``min_psnr_db`` fails the schedule below that median PSNR to the full run; None reports it only. ``target`` is how
    far to climb: ``tensorrt`` and ``rtx`` compare the bundle's engines too, of which ``gpu_memory`` and
    ``trust_engines`` speak. ``device`` is where torch and ONNX Runtime run.
    """

    images: int = 4
    seed: int = 1000
    guidance_scale: float | None = None
    local_tolerance: float | None = None
    free_tolerance: float | None = None
    min_psnr_db: float | None = None
    target: BackendName = "onnxruntime"
    device: str = "cpu"
    gpu_memory: int | None = None
    trust_engines: bool = False

    def __post_init__(self) -> None:
        """Check every number; a tolerance that is not a number would let everything pass, or nothing."""
        if self.images < 1:
            raise UsageError(f"{self.images} images cannot be verified: ask for 1 or more")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative: give 0 or more")
        for name in ("local_tolerance", "free_tolerance", "min_psnr_db"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} {value} is no positive number: give one, or leave it out")


@dataclass(frozen=True)
class Rung:
    """One comparison of two ways to run the schedule.

    ``local`` is the worst step fed with the reference's slots, ``free`` the image of the whole trajectory; ``first``
    the first value, in order of execution, past the local tolerance. None where there is no such number.
    """

    name: str
    local: Deviation | None
    free: float
    first: Deviation | None
    passed: bool


@dataclass(frozen=True)
class VerifyReport:
    """All rungs, and PSNR of the schedule's images to the full run's in dB (worst, p10, p50) on [0, 1] images."""

    rungs: tuple[Rung, ...]
    psnr_db: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether every rung and gate held."""
        return not self.failure


def verify(bundle: LoadedBundle, options: VerifyOptions = VerifyOptions()) -> VerifyReport:
    """Run the ladder on ``bundle``.

    1. All gates open: the full schedule under the surgery is the plain model, bitwise.
    2. The program on torch is the PyTorch reference; in float64 where float32 roundings alone exceed the tolerance.
    3. ONNX Runtime on the subnets is torch.
    4. ONNX Runtime on the segments is the subnets (for a bundle of that layout).
    5. The bundle's engines are ONNX Runtime on its own graphs (for a target that runs engines); tolerances are those of
       the precision they were built in.

    A bundle that was exported in half precision, and has graphs with islands because its own do not hold, is judged in
    float32: its model is traced anew.
    """
    with nullcontext(bundle) if own_variant(bundle) is None else in_float32(bundle) as judged:
        ladder = _Ladder(judged, options, bundle)
        rungs = tuple(ladder.climb())
        psnr = ladder.schedule_psnr()
    failure = next((_failure(rung) for rung in rungs if not rung.passed), "")
    floor = options.min_psnr_db
    if not failure and floor is not None and psnr["p50"] < floor:
        failure = (
            f"median PSNR to the full run is {psnr['p50']:.1f} dB, {floor:g} dB is wanted: search a milder schedule"
        )
    return VerifyReport(rungs, psnr, failure)


def _failure(rung: Rung) -> str:
    where = f", first at {rung.first.value}, step {rung.first.step} ({rung.first.relative:.1e})" if rung.first else ""
    local = f"local {rung.local.relative:.1e}, " if rung.local else ""
    return f"{rung.name}: {local}free-running {rung.free:.1e} past tolerance{where}: the fast path is not the slow one"


class _Ladder:
    """The runs of one verification; each is made once and kept. ``built`` is the bundle whose engines are run."""

    def __init__(self, bundle: LoadedBundle, options: VerifyOptions, built: LoadedBundle) -> None:
        contract = bundle.manifest.contract
        wanted, found = built.manifest.contract.model_digest, built.model.digest
        if found != wanted:
            raise InputError(
                f"the model in {built.folder} is {found[:12]}, its contract is for {wanted[:12]}: export the bundle "
                "again"
            )
        self.half = is_half(contract.dtype)
        self.bundle, self.options, self.built = bundle, options, built
        self.local = local_tolerance(options, contract.dtype)
        self.free = options.free_tolerance or (_HALF if self.half else _SINGLE)[1]
        self.scale = contract.guidance_scale(options.guidance_scale)
        self.inputs = run_inputs(bundle.model, contract, range(options.seed, options.seed + options.images))
        self.image = np.empty(0)

    def climb(self) -> Iterator[Rung]:
        """The rungs, lowest first; ``image`` is then what the bundle itself makes."""
        yield self._gates_open()
        bundle = self.bundle
        subnets = bundle.compiled if bundle.program.layout == "subnets" else bundle.compile(bundle.schedule)
        by_torch = recorded(self._session("torch", subnets), self.inputs, self.options.seed)
        yield self._against_reference(subnets, by_torch.image)
        session = self._session("onnxruntime", subnets)
        by_subnets = recorded(session, self.inputs, self.options.seed)
        yield self._compared("onnxruntime subnets = torch", session, by_subnets, by_torch)
        self.image = by_subnets.image
        if bundle.program.layout == "segments":
            session = self._session("onnxruntime", bundle.compiled)
            by_segments = recorded(session, self.inputs, self.options.seed)
            yield self._compared("onnxruntime segments = subnets", session, by_segments, by_subnets)
            by_subnets, self.image = by_segments, by_segments.image
        if self.options.target != "onnxruntime":
            yield self._engines(by_subnets)

    def _engines(self, wanted: Recording) -> Rung:
        """The engines against ONNX Runtime in the bundle's own precision."""
        options, target = self.options, self.options.target
        session = self.built.session(
            options.images,
            backend=target,
            guidance_scale=self.scale,
            gpu_memory=options.gpu_memory,
            trust_engines=options.trust_engines,
        )
        found = recorded(session, self.inputs, options.seed)
        self.image = found.image
        if any(is_half(slot.dtype) for slot in session.program.slots):
            self.local, self.free = options.local_tolerance or _HALF[0], options.free_tolerance or _HALF[1]
        return self._compared(f"{target} = onnxruntime", session, found, wanted)

    def _session(self, backend: BackendName, compiled: Compiled) -> Session:
        return self.bundle.session(
            self.options.images,
            backend=backend,
            guidance_scale=self.scale,
            compiled=compiled,
            device=self.options.device,
        )

    def _gates_open(self) -> Rung:
        """One forward of the plain model against one under the surgery with every block computed."""
        import torch

        from dipgo_deploy.supernet import gated

        model = self.bundle.model
        inputs = model.example_inputs(2)
        names = [name for name in self.bundle.blocks.block_names if name != PREDICTION]
        with torch.no_grad():
            plain = model.forward(**inputs)
            with gated(model.module, names, lambda _, forward, args, kwargs: forward(*args, **kwargs)):
                opened = model.forward(**inputs)
        difference = float((plain.double() - opened.double()).abs().max())
        return Rung("all gates open = plain model", None, difference, None, difference == 0.0)

    def _against_reference(self, subnets: Compiled, image: np.ndarray) -> Rung:
        """The program on the live model against the schedule on the live model with the sampler's own steps."""
        name, tolerance = "program on torch = reference", self.free if self.half else EXACT
        free = relative_difference(image, self._reference_image(self.bundle.model))
        if free > tolerance and not self.half:
            name, free = f"{name}, in float64", self._in_float64(subnets.program)
        return Rung(name, None, free, None, free <= tolerance)

    def _reference_image(self, model: LoadedModel) -> np.ndarray:
        noise, conditioning = self.inputs
        noise = noise.astype(model.dtype) if model.dtype == "float64" else noise
        schedule, scale, seed = self.bundle.schedule, self.scale, self.options.seed
        trajectory = reference_trajectory(model, schedule, noise, conditioning, guidance_scale=scale, seed=seed)
        image: np.ndarray = last_latent(trajectory).cpu().numpy()
        return image

    def _in_float64(self, program: Program) -> float:
        """The same comparison without roundings, which some schedules amplify past the tolerance by themselves."""
        model = self.bundle.model.as_dtype("float64")
        backend = TorchBackend(model, self.bundle.blocks, program, dtype="float64")
        session = Session(program, backend, self.options.images, self.scale)
        image = session.run(*self.inputs, seed=self.options.seed)
        return relative_difference(image, self._reference_image(model))

    def _compared(self, name: str, session: Session, found: Recording, wanted: Recording) -> Rung:
        """Local and free-running deviation of ``session``, which ``found`` records, from ``wanted``."""
        deviations = list(local_deviations(session, self.inputs, self.options.seed, wanted))
        free = relative_difference(found.image, wanted.image)
        worst = max(deviations, key=lambda deviation: deviation.relative, default=None)
        first = next((d for d in deviations if not d.relative <= self.local), None)
        return Rung(name, worst, free, first, first is None and free <= self.free)

    def schedule_psnr(self) -> dict[str, float]:
        """PSNR of the bundle's images to the full run's, per image: worst, p10 and median, in dB."""
        own = self.bundle.schedule
        full = self.bundle.compile(full_schedule(own.contract, own.granularity, own.kind, own.blocks))
        whole = self._session("onnxruntime", full).run(*self.inputs, seed=self.options.seed)
        psnr = psnr_db(self.image, whole)
        return {"worst": float(psnr.min()), "p10": float(np.percentile(psnr, 10)), "p50": float(np.median(psnr))}


def local_tolerance(options: VerifyOptions, dtype: str) -> float:
    """Deviation of one call that is allowed in ``dtype``, relative to the slot's largest value."""
    return options.local_tolerance or (_HALF if is_half(dtype) else _SINGLE)[0]

"""Verify: the fast path judged by the slow one, rung by rung, on real trajectories; and the schedule by the full run.

Compile error and schedule error are two numbers, never one. Every rung compares with ``max |a - b|`` over the largest
reference value of the slot: *local*, where each step is fed the reference's slots, and *free-running*, over the whole
trajectory. The first slot and step that part are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.program import Call, Program, Run
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.runtime.generate import noise_for
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.supernet.rollout import reference_trajectory

__all__ = ["Deviation", "Rung", "VerifyOptions", "VerifyReport", "verify"]

Values = dict[tuple[str, int], np.ndarray]
"""Arrays by value name and the step that wrote them."""


@dataclass(frozen=True)
class VerifyOptions:
    """Images, seed and guidance scale of the trajectories; tolerances relative to the slot's largest value.

    ``None`` for a tolerance takes the dtype's: 1e-4 local and 1e-3 free-running for float32, 2e-2 and 1e-1 for half.
    ``min_psnr_db`` fails the schedule below that median PSNR to the full run; None reports it only.
    """

    images: int = 4
    seed: int = 1000
    guidance_scale: float | None = None
    local_tolerance: float | None = None
    free_tolerance: float | None = None
    min_psnr_db: float | None = None


@dataclass(frozen=True)
class Deviation:
    """A relative difference, and the value and step where it was found."""

    value: str
    step: int
    relative: float


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
    2. The unfolded program on torch is the PyTorch reference.
    3. ONNX Runtime on the subnets is torch.
    4. ONNX Runtime on the segments is the subnets (for a bundle of that layout).
    """
    ladder = _Ladder(bundle, options)
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
    """The runs of one verification; each is made once and kept."""

    def __init__(self, bundle: LoadedBundle, options: VerifyOptions) -> None:
        contract = bundle.manifest.contract
        if options.images < 1:
            raise UsageError(f"{options.images} images cannot be verified: ask for 1 or more")
        half = contract.dtype in ("float16", "bfloat16")
        self.bundle, self.options = bundle, options
        self.local = options.local_tolerance or (2e-2 if half else 1e-4)
        self.free = options.free_tolerance or (1e-1 if half else 1e-3)
        default = 2.0 if contract.guidance == "concat" else 1.0
        self.scale = default if options.guidance_scale is None else options.guidance_scale
        seeds = range(options.seed, options.seed + options.images)
        self.noise = noise_for(list(seeds), contract.latent_shape)
        classes = bundle.model.num_classes or 1
        self.conditioning = bundle.model.conditioning([i % classes for i in range(options.images)], contract.guidance)

    def climb(self) -> Iterator[Rung]:
        """The rungs, lowest first."""
        yield self._gates_open()
        schedule = self.bundle.schedule
        *_, last = reference_trajectory(
            self.bundle.model, schedule, self.noise, self.conditioning, guidance_scale=self.scale, seed=self._seed
        )
        self.reference = last.latent.cpu().numpy()
        unfolded = self._session("torch", self.bundle.compile(schedule, fold=False))
        image = unfolded.run(self.noise, self.conditioning, seed=self._seed)
        self.free_reference = image
        yield self._whole("program on torch = reference", image, self.reference, self.free if self._half else 1e-5)
        subnets = self.bundle.compiled if self.bundle.program.layout == "subnets" else self.bundle.compile(schedule)
        torch_session = self._session("torch", subnets)
        yield self._lockstep("onnxruntime subnets = torch", torch_session, self._session("onnxruntime", subnets))
        if self.bundle.program.layout == "segments":
            one, other = (self._session("onnxruntime", c) for c in (subnets, self.bundle.compiled))
            yield self._lockstep("onnxruntime segments = subnets", one, other)

    @property
    def _half(self) -> bool:
        return self.bundle.manifest.contract.dtype in ("float16", "bfloat16")

    @property
    def _seed(self) -> int:
        return self.options.seed

    def _session(self, backend: str, compiled: object) -> Session:
        return self.bundle.session(self.options.images, backend=backend, guidance_scale=self.scale, compiled=compiled)  # type: ignore[arg-type]

    def _gates_open(self) -> Rung:
        """One forward of the plain model against one under the surgery with every block computed."""
        import torch

        from dipgo_deploy.supernet import gated

        model = self.bundle.model
        inputs = model.example_inputs(2)
        names = [name for name in self.bundle.blocks.block_names if name != self.bundle.blocks.blocks[-1].name]
        with torch.no_grad():
            plain = model.forward(**inputs)
            with gated(model.module, names, lambda _, forward, args, kwargs: forward(*args, **kwargs)):
                opened = model.forward(**inputs)
        difference = float((plain.double() - opened.double()).abs().max())
        return Rung("all gates open = plain model", None, difference, None, difference == 0.0)

    def _whole(self, name: str, image: np.ndarray, reference: np.ndarray, tolerance: float) -> Rung:
        free = relative_difference(image, reference)
        return Rung(name, None, free, None, free <= tolerance)

    def _lockstep(self, name: str, reference: Session, candidate: Session) -> Rung:
        """Local and free-running deviation of ``candidate`` from ``reference``."""
        wanted: Values = {}
        image_wanted = _record(reference, self._inputs, self._seed, wanted)
        deviations = list(_local_deviations(candidate, self._inputs, self._seed, wanted))
        image = candidate.run(self.noise, self.conditioning, seed=self._seed)
        free = relative_difference(image, image_wanted)
        worst = max(deviations, key=lambda deviation: deviation.relative, default=None)
        first = next((d for d in deviations if not d.relative <= self.local), None)
        passed = first is None and free <= self.free
        return Rung(name, worst, free, first, passed)

    @property
    def _inputs(self) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        return self.noise, self.conditioning

    def schedule_psnr(self) -> dict[str, float]:
        """PSNR of the schedule's images to the full run's, per image: worst, p10 and median, in dB."""
        schedule = self.bundle.schedule
        full = full_schedule(schedule.contract, schedule.granularity, schedule.kind, schedule.blocks)
        whole = self._session("onnxruntime", self.bundle.compile(full)).run(*self._inputs, seed=self._seed)
        own = self._session("onnxruntime", self.bundle.compiled).run(*self._inputs, seed=self._seed)
        error = ((unit_range(own) - unit_range(whole)) ** 2).mean(axis=(1, 2, 3))
        psnr = -10 * np.log10(np.maximum(error, 1e-12))
        return {"worst": float(psnr.min()), "p10": float(np.percentile(psnr, 10)), "p50": float(np.median(psnr))}


def unit_range(images: np.ndarray) -> np.ndarray:
    """Images of a model's [-1, 1] as float64 in [0, 1], clipped as they are when saved."""
    return np.clip(images.astype(np.float64) / 2 + 0.5, 0.0, 1.0)


def relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """``max |found - wanted|`` over the largest absolute value wanted; infinite where either is not finite."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return float("inf")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def _written(program: Program, call: Call) -> list[tuple[str, str]]:
    """``(value name, slot)`` of what a call writes; latents are named by the step that made them."""
    if isinstance(call, Run):
        return list(call.outputs)
    return [("latent" if call.target == program.image else f"combination in {call.target}", call.target)]


def _record(
    session: Session, inputs: tuple[np.ndarray, Mapping[str, np.ndarray]], seed: int, into: Values
) -> np.ndarray:
    """Run the reference, keep every graph output by name and step, and return the image."""
    for _, call in session.iterate(*inputs, seed=seed):
        if isinstance(call, Run):
            for name, slot in call.outputs:
                into[name, call.step] = session.slot(slot)
    return session.slot(session.program.image)


def _local_deviations(
    session: Session, inputs: tuple[np.ndarray, Mapping[str, np.ndarray]], seed: int, wanted: Values
) -> Iterator[Deviation]:
    """Deviation of each graph output, with what it wrote then replaced by the reference's.

    So every later call is fed the reference's values wherever the reference has them; within a step of several segments
    the values between them are the candidate's own.
    """
    for _, call in session.iterate(*inputs, seed=seed):
        if not isinstance(call, Run):
            continue
        for name, slot in call.outputs:
            reference = wanted.get((name, call.step))
            if reference is not None:
                yield Deviation(name, call.step, relative_difference(session.slot(slot), reference))
                session.write(slot, reference)

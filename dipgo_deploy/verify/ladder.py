"""The ladder of a verification: every way to run a schedule is compared with the slower way below it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from dipgo_deploy.bundle.bundle import Bundle, CompiledProgram
from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.metrics import psnr_db
from dipgo_deploy.core.precision import is_half
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.run_options import BackendName, RunOptions
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.open import open_session
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.torch_backend import TorchBackend
from dipgo_deploy.supernet import gated
from dipgo_deploy.supernet.rollout import last_latent, reference_trajectory
from dipgo_deploy.verify.deviation import Deviation, Recording, local_deviations, record_run, relative_difference
from dipgo_deploy.verify.options import EXACT, HALF, ROUNDING_FACTOR, SINGLE, VerifyOptions, local_tolerance

__all__ = ["Ladder", "Rung"]


@dataclass(frozen=True)
class Rung:
    """One comparison of two ways to run the schedule.

    Attributes:
        name: the two ways.
        local: the worst step, each fed with the reference's slots. None where there is no such number.
        free: deviation of the image after the whole trajectory.
        first: the first value in order of execution beyond the local tolerance. None if there is none.
        passed: whether both deviations lie within the tolerances.
    """

    name: str
    local: Deviation | None
    free: float
    first: Deviation | None
    passed: bool


class Ladder:
    """The runs of one verification. Each run is made once and kept.

    Args:
        bundle: the bundle to verify.
        options: images, tolerances and backend.

    Raises:
        InputError: the bundle holds another model than its contract says.
    """

    def __init__(self, bundle: Bundle, options: VerifyOptions) -> None:
        contract = bundle.contract
        if bundle.model.digest != contract.model_digest:
            raise InputError(
                f"the model in {bundle.folder} is {bundle.model.digest[:12]}, its contract is for "
                f"{contract.model_digest[:12]}: re-export the bundle"
            )
        self.bundle, self.options, self.half = bundle, options, is_half(contract.dtype)
        self.local = local_tolerance(options, contract.dtype)
        self.free = options.free_tolerance or (HALF if self.half else SINGLE)[1]
        self.scale = contract.guidance_scale(options.guidance_scale)
        self.inputs = run_inputs(bundle.model, contract, range(options.seed, options.seed + options.images))
        self.image = np.empty(0)

    def climb(self) -> Iterator[Rung]:
        """The rungs, the lowest first. Afterwards ``image`` holds the images of the fastest backend."""
        yield self._gates_open()
        subnets, seed = self._subnets, self.options.seed
        by_torch = record_run(self._open("torch", subnets), self.inputs, seed)
        yield self._against_reference(subnets, by_torch.image)
        session = self._open("onnxruntime", subnets)
        fastest = record_run(session, self.inputs, seed)
        yield self._compare("onnxruntime subnets = torch", session, fastest, by_torch)
        if self.bundle.program.layout == "segments":
            session, by_subnets = self._open("onnxruntime", self.bundle.compiled), fastest
            fastest = record_run(session, self.inputs, seed)
            yield self._compare("onnxruntime segments = subnets", session, fastest, by_subnets)
        self.image = fastest.image
        if self.options.run.on_engines:
            yield self._engines(fastest)

    @cached_property
    def _subnets(self) -> CompiledProgram:
        """The schedule in layout ``subnets``, the only layout that the live model can run."""
        bundle = self.bundle
        return bundle.compiled if bundle.program.layout == "subnets" else bundle.compile(bundle.schedule)

    def _engines(self, reference: Recording) -> Rung:
        """The engines compared with ONNX Runtime in the bundle's own precision."""
        options = self.options
        session = open_session(self.bundle, options.images, options.run, guidance_scale=self.scale)
        recording = record_run(session, self.inputs, options.seed)
        self.image = recording.image
        if any(is_half(slot.dtype) for slot in session.program.slots):
            self.half = True
            self.local, self.free = options.local_tolerance or HALF[0], options.free_tolerance or HALF[1]
        return self._compare(f"{options.run.backend} = onnxruntime", session, recording, reference)

    def _open(self, backend: BackendName, compiled: CompiledProgram) -> Session:
        options = self.options
        is_verified = backend == options.run.backend
        run = replace(options.run, device=options.device) if is_verified else RunOptions(backend, options.device)
        return open_session(self.bundle, self.options.images, run, guidance_scale=self.scale, compiled=compiled)

    def _gates_open(self) -> Rung:
        """One forward of the plain model, and one under the surgery with every block computed."""
        model = self.bundle.model
        inputs = model.example_inputs(2)
        names = [name for name in self.bundle.blocks.block_names if name != PREDICTION]
        with torch.no_grad():
            plain = model.forward(**inputs)
            with gated(model.module, names, lambda _, forward, args, kwargs: forward(*args, **kwargs)):
                gated_output = model.forward(**inputs)
        difference = float((plain.double() - gated_output.double()).abs().max())
        return Rung("all gates open = plain model", None, difference, None, difference == 0.0)

    def _against_reference(self, subnets: CompiledProgram, image: np.ndarray) -> Rung:
        """The program on the live model, and the schedule on the live model with the sampler's own steps."""
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
        """The same comparison in float64. Some schedules amplify float32 roundings beyond the tolerance."""
        model, session = self._float64(program)
        image = session.run(*self.inputs, seed=self.options.seed, check_finite=False)
        return relative_difference(image, self._reference_image(model))

    def _float64(self, program: Program) -> tuple[LoadedModel, Session]:
        """The live model in float64, and a session of it."""
        model = self.bundle.model.as_dtype("float64")
        backend = TorchBackend(model, self.bundle.blocks, program, dtype="float64")
        return model, Session(program, backend, self.options.images, self.scale)

    def _compare(self, name: str, session: Session, recording: Recording, reference: Recording) -> Rung:
        """Local and free-running deviation of ``session``, whose run is ``recording``, from ``reference``."""
        deviations = list(local_deviations(session, self.inputs, self.options.seed, reference))
        free = relative_difference(recording.image, reference.image)
        worst = max(deviations, key=lambda deviation: deviation.relative, default=None)
        past = [deviation for deviation in deviations if not deviation.relative <= self.local]
        is_gate = self.options.local_tolerance is not None  # The user's own tolerance holds everywhere.
        if past and not (self.half or is_gate) and all(math.isfinite(deviation.relative) for deviation in past):
            name, roundings = f"{name}, by float64", self._roundings(reference)
            past = [d for d in past if d.relative > ROUNDING_FACTOR * roundings.get((d.value, d.step), 0.0)]
        first = past[0] if past else None
        return Rung(name, worst, free, first, first is None and free <= self.free)

    def _roundings(self, reference: Recording) -> dict[tuple[str, int], float]:
        """The rounding error of each float32 value of ``reference``, measured in float64 on the same slots."""
        _, session = self._float64(self._subnets.program)
        exact = local_deviations(session, self.inputs, self.options.seed, reference)
        return {(deviation.value, deviation.step): deviation.relative for deviation in exact}

    def schedule_psnr(self) -> dict[str, float]:
        """PSNR of the bundle's images to the full run's in dB: the worst image, p10 and median."""
        own = self.bundle.schedule
        full = self.bundle.compile(full_schedule(own.contract, own.granularity, own.kind, own.blocks))
        full_images = self._open("onnxruntime", full).run(*self.inputs, seed=self.options.seed)
        psnr = psnr_db(self.image, full_images)
        return {"worst": float(psnr.min()), "p10": float(np.percentile(psnr, 10)), "p50": float(np.median(psnr))}

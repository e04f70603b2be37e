"""The ladder of a verification: every way to run a schedule is compared with the slower way below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from dipgo_deploy.models.full_run import full_run_of
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.open import open_session
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.torch_backend import TorchBackend
from dipgo_deploy.supernet import gated
from dipgo_deploy.supernet.rollout import last_latent, reference_trajectory
from dipgo_deploy.verify.deviation import Deviation, Recording, local_deviations, record_run, relative_difference
from dipgo_deploy.verify.options import EXACT, HALF, ROUNDING_FACTOR, SINGLE, VerifyOptions, local_tolerance
from dipgo_deploy.verify.rung import Rung, make_rung

__all__ = ["Ladder"]


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
        model = bundle.live_model
        if not model.has_digest(contract.model_digest):
            raise InputError(
                f"the model in {bundle.folder} is {model.digest[:12]}, its contract is for "
                f"{contract.model_digest[:12]}: re-export the bundle"
            )
        self.bundle, self.options, self.half = bundle, options, is_half(contract.dtype)
        self.local = local_tolerance(options, contract.dtype)
        self.free = options.free_tolerance or (HALF if self.half else SINGLE)[1]
        self.scale = contract.guidance_scale(options.guidance_scale)
        self.sizes = options.sizes
        contract.sizes(options.images, self.sizes)  # Refuses a size outside the contract.
        seeds = range(options.seed, options.seed + options.images)
        self.inputs = run_inputs(bundle.model, contract, seeds, self.sizes)
        self.image = np.empty(0)
        self._arbiter = "float64"

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
        session = open_session(self.bundle, options.images, options.run, guidance_scale=self.scale, sizes=self.sizes)
        recording = record_run(session, self.inputs, options.seed)
        self.image = recording.image
        if half := {slot.dtype for slot in session.program.slots if is_half(slot.dtype)}:
            self.local, self.free = options.local_tolerance or HALF[0], options.free_tolerance or HALF[1]
            # The reference may be in float32. Then PyTorch in the engines' dtype shows what roundings are usual.
            self._arbiter = self._arbiter if self.half else half.pop()
        return self._compare(f"{options.run.backend} = onnxruntime", session, recording, reference)

    def _open(self, backend: BackendName, compiled: CompiledProgram) -> Session:
        options = self.options
        is_verified = backend == options.run.backend
        run = replace(options.run, device=options.device) if is_verified else RunOptions(backend, options.device)
        images, scale = self.options.images, self.scale
        return open_session(self.bundle, images, run, guidance_scale=scale, sizes=self.sizes, compiled=compiled)

    def _gates_open(self) -> Rung:
        """One forward of the plain model, and one under the surgery with every block computed."""
        model = self.bundle.live_model
        inputs = model.example_inputs(2)
        names = [name for name in self.bundle.blocks.block_names if name != PREDICTION]
        with torch.no_grad():
            plain = model.forward(**inputs)
            with gated(model.module, names, lambda _, forward, args, kwargs: forward(*args, **kwargs)):
                gated_output = model.forward(**inputs)
        difference = float((plain.double() - gated_output.double()).abs().max())
        return make_rung("all gates open = plain model", difference, 0.0)

    def _against_reference(self, subnets: CompiledProgram, image: np.ndarray) -> Rung:
        """The program on the live model, and the schedule on the live model with the sampler's own steps."""
        name, tolerance = "program on torch = reference", self.free if self.half else EXACT
        free = relative_difference(image, self._reference_image(self.bundle.live_model))
        # In float64 a difference between the two is an error, and not a rounding that the schedule amplifies.
        if tolerance < free < float("inf") and self.options.free_tolerance is None:
            name, tolerance = f"{name}, in float64", EXACT
            model, session = self._in_dtype("float64", subnets.program)
            exact = session.run(*self.inputs, seed=self.options.seed, check_finite=False)
            free = relative_difference(exact, self._reference_image(model))
        return make_rung(name, free, tolerance)

    def _reference_image(self, model: LoadedModel) -> np.ndarray:
        noise, conditioning = self.inputs
        noise = noise.astype(model.dtype) if model.dtype == "float64" else noise
        schedule, scale, seed = self.bundle.schedule, self.scale, self.options.seed
        trajectory = reference_trajectory(model, schedule, noise, conditioning, guidance_scale=scale, seed=seed)
        image: np.ndarray = last_latent(trajectory).cpu().numpy()
        return image

    def _in_dtype(self, dtype: str, program: Program) -> tuple[LoadedModel, Session]:
        """The live model in another dtype, and a session of it."""
        model = self.bundle.live_model.as_dtype(dtype)
        # In half precision only the network is cast, because the slots between calls stay as they are.
        backend = TorchBackend(model, self.bundle.blocks, program, dtype=None if is_half(dtype) else dtype)
        return model, Session(program, backend, self.options.images, self.scale, sizes=self.sizes)

    def _compare(self, name: str, session: Session, recording: Recording, reference: Recording) -> Rung:
        """Local and free-running deviation of ``session``, whose run is ``recording``, from ``reference``."""
        deviations = [
            replace(deviation, tolerance=self.local)
            for deviation in local_deviations(session, self.inputs, self.options.seed, reference)
        ]
        rung = make_rung(name, relative_difference(recording.image, reference.image), self.free, deviations)
        return rung if rung.passed else self._with_roundings(rung, deviations, reference)

    def _with_roundings(self, rung: Rung, deviations: Sequence[Deviation], reference: Recording) -> Rung:
        """The rung again, with tolerances that follow the rounding errors of its reference.

        A tolerance that the user gives, and a value that is not finite, stay as they are.
        """
        options, infinite = self.options, float("inf")
        is_local = "local" in rung.past and options.local_tolerance is None
        is_free = "free" in rung.past and options.free_tolerance is None and rung.free < infinite
        if not (is_local or is_free) or any(deviation.relative == infinite for deviation in deviations):
            return rung
        roundings, image = self._roundings(reference)
        if is_local:
            deviations = [
                replace(deviation, tolerance=_allowed(self.local, roundings.get((deviation.value, deviation.step))))
                for deviation in deviations
            ]
        free = _allowed(self.free, image) if is_free else rung.free_tolerance
        return make_rung(f"{rung.name}, by {self._arbiter}", rung.free, free, deviations)

    def _roundings(self, reference: Recording) -> tuple[dict[tuple[str, int], float], float]:
        """The rounding error of each value of ``reference`` on the same slots, and of its image, by the arbiter."""
        _, session = self._in_dtype(self._arbiter, self._subnets.program)
        local = local_deviations(session, self.inputs, self.options.seed, reference)
        values = {(deviation.value, deviation.step): deviation.relative for deviation in local}
        return values, relative_difference(session.run(*self.inputs, seed=self.options.seed), reference.image)

    def schedule_psnr(self) -> dict[str, float]:
        """PSNR of the bundle's images to the full run's in dB: the worst image, p10 and median."""
        own = self.bundle.schedule
        contract = replace(own.contract, sampler=full_run_of(own.contract.sampler))
        full = self.bundle.compile(full_schedule(contract, own.granularity, own.kind, own.blocks))
        full_images = self._open("onnxruntime", full).run(*self.inputs, seed=self.options.seed)
        psnr = psnr_db(self.image, full_images)
        return {"worst": float(psnr.min()), "p10": float(np.percentile(psnr, 10)), "p50": float(np.median(psnr))}


def _allowed(tolerance: float, rounding: float | None) -> float:
    """The tolerance of a value whose reference has a rounding error. A rounding that is not finite allows nothing."""
    return max(tolerance, ROUNDING_FACTOR * rounding) if rounding is not None and rounding < float("inf") else tolerance

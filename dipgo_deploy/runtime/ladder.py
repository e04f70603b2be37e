"""The ladder of a verification: every way to run a schedule against the slower one below it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.metrics import psnr_db
from dipgo_deploy.core.precision import is_half
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.runtime.deviation import Deviation, Recording, local_deviations, recorded, relative_difference
from dipgo_deploy.runtime.inputs import run_inputs
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.loaded import BackendName, Compiled, LoadedBundle
from dipgo_deploy.runtime.torch_backend import TorchBackend
from dipgo_deploy.runtime.verify_options import EXACT, HALF, ROUNDINGS, SINGLE, VerifyOptions, local_tolerance
from dipgo_deploy.supernet.rollout import last_latent, reference_trajectory

__all__ = ["Ladder", "Rung"]


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


class Ladder:
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
        self.free = options.free_tolerance or (HALF if self.half else SINGLE)[1]
        self.scale = contract.guidance_scale(options.guidance_scale)
        self.inputs = run_inputs(bundle.model, contract, range(options.seed, options.seed + options.images))
        self.image = np.empty(0)

    def climb(self) -> Iterator[Rung]:
        """The rungs, lowest first; ``image`` is then what the bundle itself makes."""
        yield self._gates_open()
        bundle, subnets = self.bundle, self._subnets
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

    @cached_property
    def _subnets(self) -> Compiled:
        """The schedule in the layout that the live model can run."""
        bundle = self.bundle
        return bundle.compiled if bundle.program.layout == "subnets" else bundle.compile(bundle.schedule)

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
            self.half = True
            self.local, self.free = options.local_tolerance or HALF[0], options.free_tolerance or HALF[1]
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
        model, session = self._float64(program)
        image = session.run(*self.inputs, seed=self.options.seed)
        return relative_difference(image, self._reference_image(model))

    def _float64(self, program: Program) -> tuple[LoadedModel, Session]:
        """The live model in float64, and a session of it."""
        model = self.bundle.model.as_dtype("float64")
        backend = TorchBackend(model, self.bundle.blocks, program, dtype="float64")
        return model, Session(program, backend, self.options.images, self.scale)

    def _compared(self, name: str, session: Session, found: Recording, wanted: Recording) -> Rung:
        """Local and free-running deviation of ``session``, which ``found`` records, from ``wanted``."""
        deviations = list(local_deviations(session, self.inputs, self.options.seed, wanted))
        free = relative_difference(found.image, wanted.image)
        worst = max(deviations, key=lambda deviation: deviation.relative, default=None)
        past = [d for d in deviations if not d.relative <= self.local]
        given = self.options.local_tolerance is not None  # a number of the user's own is a gate
        if past and not (self.half or given) and all(math.isfinite(d.relative) for d in past):
            name, roundings = f"{name}, by float64", self._roundings(wanted)
            past = [d for d in past if d.relative > ROUNDINGS * roundings.get((d.value, d.step), 0.0)]
        first = past[0] if past else None
        return Rung(name, worst, free, first, first is None and free <= self.free)

    def _roundings(self, wanted: Recording) -> dict[tuple[str, int], float]:
        """How far each value of ``wanted``, computed in float32, is from float64 on the same slots."""
        _, session = self._float64(self._subnets.program)
        exact = local_deviations(session, self.inputs, self.options.seed, wanted)
        return {(deviation.value, deviation.step): deviation.relative for deviation in exact}

    def schedule_psnr(self) -> dict[str, float]:
        """PSNR of the bundle's images to the full run's, per image: worst, p10 and median, in dB."""
        own = self.bundle.schedule
        full = self.bundle.compile(full_schedule(own.contract, own.granularity, own.kind, own.blocks))
        whole = self._session("onnxruntime", full).run(*self.inputs, seed=self.options.seed)
        psnr = psnr_db(self.image, whole)
        return {"worst": float(psnr.min()), "p10": float(np.percentile(psnr, 10)), "p50": float(np.median(psnr))}

"""Session: a program whose calls are bound to the buffers of a backend and then made in order.

Nothing is decided or allocated while images are made. A run overwrites everything that it reads: first the caller
fills the input slots, then every call fills slots for later calls. A sampler with a history starts again.

A session holds the values of one run. Threads that call ``run`` wait for each other. A run that is made call by call is
refused once another run has begun.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.finite import not_finite_error
from dipgo_deploy.core.program import Call, Combine, Program, Run, Sample
from dipgo_deploy.runtime.backend import Backend, BoundCall
from dipgo_deploy.runtime.program_check import check_slots

__all__ = ["Session"]

_OTHER_RUN = (
    "another run has begun in the middle of this run, and a session makes one run at a time: open a session for each "
    "thread, or call run, which waits"
)


class Session:
    """A program on a backend, for one batch size, one guidance scale and one value of every free size.

    It makes one run at a time, see above.

    Args:
        program: the calls.
        backend: holds the graphs and the memory.
        batch: images of a run.
        guidance_scale: weight of the conditional output. It must be 1 for a program without guidance.
        sizes: values of free sizes by symbol, such as ``{"tokens": 154}``. The others have their usual values.
        cuda_graph: replay all calls as one CUDA graph after the first run.

    Raises:
        UsageError: a batch below 1, a size outside the contract, a guidance scale that is not finite or has no effect,
            or ``cuda_graph`` for a sampler that runs on the host.
        InputError: the program is inconsistent, or a graph is damaged or does not fit the program.
    """

    def __init__(
        self,
        program: Program,
        backend: Backend,
        batch: int,
        guidance_scale: float = 1.0,
        *,
        sizes: Mapping[str, int] = MappingProxyType({}),
        cuda_graph: bool = False,
    ) -> None:
        _check_options(program, batch, guidance_scale, cuda_graph)
        check_slots(program)
        self.program, self.backend, self.batch, self.guidance_scale = program, backend, batch, guidance_scale
        self._sizes = program.contract.sizes(batch, sizes)
        self._specs = {spec.name: spec for spec in program.slots}
        self._buffers = {name: backend.allocate(spec, self._sizes) for name, spec in self._specs.items()}
        self._stepper: Any = None
        if _has_host_sampler(program):
            # Imported here, because only samplers that are not linear need diffusers at run time.
            from dipgo_deploy.supernet.stepper import SamplerStepper

            self._stepper = SamplerStepper(program.contract.sampler)
        self.calls: tuple[BoundCall, ...] = tuple(self._bind(call) for call in program.calls)
        self._lock = threading.RLock()
        self._run_id = (0, 0)  # number and thread of the run that was begun last
        self._cuda_graph = cuda_graph
        self._replay: BoundCall | None = None

    def __repr__(self) -> str:
        name = getattr(self.backend, "name", type(self.backend).__name__)
        return f"Session({name}, batch {self.batch}, guidance scale {self.guidance_scale:g}, {self.program!r})"

    def run(
        self,
        noise: np.ndarray,
        conditioning: Mapping[str, np.ndarray],
        seed: int | None = None,
        *,
        check_finite: bool = True,
    ) -> np.ndarray:
        """Make a batch of images: ``begin``, ``go``, and a read of the image's slot.

        Args:
            noise: (B, C, H, W), standard normal.
            conditioning: network inputs by name, without latent and timestep. Rows come first.
            seed: of noise that the sampler draws. Image i takes ``seed + i``. None is 0.
            check_finite: whether NaN and infinity in the result are an error.

        Returns:
            Images (B, C, H, W) in the dtype of the image's slot, usually float32.

        Raises:
            UsageError: an input is missing, unknown, not finite, or of a wrong shape or dtype.
            GateError: the images are not finite, and ``check_finite`` is set.
        """
        with self._lock:
            self.begin(noise, conditioning, seed)
            self.go()
            images = self.slot(self.program.image)
        if check_finite and not np.isfinite(images).all():
            _check_inputs({"noise": noise, **conditioning})
            raise not_finite_error("the latents of this run", self.program.contract)
        return images

    def begin(self, noise: np.ndarray, conditioning: Mapping[str, np.ndarray], seed: int | None = None) -> None:
        """Start a run: write the inputs into their slots and reset the sampler's history.

        Args:
            noise: (B, C, H, W), standard normal.
            conditioning: network inputs by name, without latent and timestep.
            seed: of noise that the sampler draws.

        Raises:
            UsageError: an input is missing, unknown, or of a wrong shape or dtype.
        """
        slots = dict(self.program.conditioning)
        if mismatched := sorted(slots.keys() ^ conditioning.keys()):
            problem = "missing" if mismatched[0] in slots else "unknown"
            raise UsageError(
                f"conditioning {mismatched[0]!r} is {problem}: the program takes {', '.join(slots) or 'none'}"
            )
        with self._lock:
            self._run_id = (self._run_id[0] + 1, threading.get_ident())
            self._write("noise", self.program.noise, noise)
            for name, slot in slots.items():
                self._write(f"conditioning {name!r}", slot, conditioning[name])
            if self._stepper is not None:
                self._stepper.restart(self.batch, seed)

    def go(self) -> None:
        """Make all calls of the run that ``begin`` started. On a GPU the calls are queued, and this returns at once.

        Raises UsageError if another thread has begun a run since.
        """
        with self._lock, self.backend.running():
            if self._run_id[1] != threading.get_ident():
                raise UsageError(_OTHER_RUN)
            for call in (self._replay,) if self._replay else self.calls:
                call()
        # The first run is made call by call, because a capture must not load or allocate anything.
        if self._cuda_graph and self._replay is None:
            self._replay = self.backend.capture(self.calls)

    def iterate(
        self, noise: np.ndarray, conditioning: Mapping[str, np.ndarray], seed: int | None = None
    ) -> Iterator[tuple[int, Call]]:
        """Make a run call by call.

        Args:
            noise: see ``run``.
            conditioning: see ``run``.
            seed: see ``run``.

        Yields:
            The index of a call and the call, after it is made. ``slot`` shows the values.

        Raises:
            UsageError: an input does not fit, or another run has begun since.
        """
        self.begin(noise, conditioning, seed)
        run_id = self._run_id
        for index, (call, bound_call) in enumerate(zip(self.program.calls, self.calls, strict=True)):
            with self._lock, self.backend.running():
                if self._run_id != run_id:
                    raise UsageError(_OTHER_RUN)
                bound_call()
            yield index, call

    def slot(self, name: str) -> np.ndarray:
        """A copy of a slot's present value. Raises UsageError for an unknown name."""
        self._check_slot(name)
        return self.backend.read(self._buffers[name])

    def buffer(self, name: str) -> Any:
        """The memory of a slot, an array or a tensor of the backend. Raises UsageError for an unknown name."""
        self._check_slot(name)
        return self._buffers[name]

    def write(self, name: str, array: np.ndarray) -> None:
        """Write an array into a slot.

        Args:
            name: of the slot.
            array: of the slot's shape.

        Raises:
            UsageError: an unknown name, a wrong shape or dtype.
        """
        self._check_slot(name)
        self._write(f"slot {name}", name, array)

    def _check_slot(self, name: str) -> None:
        if name not in self._specs:
            raise UsageError(f"there is no slot {name!r}: the program has {', '.join(self._specs)}")

    def _write(self, label: str, name: str, array: np.ndarray) -> None:
        spec, array = self._specs[name], np.asarray(array)
        shape = spec.resolve(self._sizes)
        if array.shape != shape:
            raise UsageError(f"{label} must have shape {shape}, got {array.shape}: pass one row per image and half")
        # NumPy has no bfloat16. Every dtype that may become float16 may become bfloat16 too.
        dtype = np.dtype(np.float16 if spec.dtype == "bfloat16" else spec.dtype)
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise UsageError(f"{label} must have dtype {spec.dtype}, got {array.dtype}: convert it")
        self.backend.write(self._buffers[name], array)

    def _bind(self, call: Call) -> BoundCall:
        if isinstance(call, Run):
            return self.backend.bind_run(call, self._buffers, self._sizes)
        if isinstance(call, Combine):
            return self.backend.bind_combine(call, self._buffers, self.guidance_scale)
        return self._bind_sample(call)

    def _bind_sample(self, call: Sample) -> BoundCall:
        import torch

        read, write = self.backend.read, self.backend.write
        latent, output, target = (self._buffers[name] for name in (call.latent, call.output, call.target))

        def step() -> None:
            before, prediction = torch.from_numpy(read(latent)), torch.from_numpy(read(output))
            # The result is not needed here, but some schedulers find their place in the history in this call.
            self._stepper.scale_input(call.step, before)
            write(target, self._stepper.advance(call.step, prediction, before).numpy())

        return step


def _check_inputs(inputs: Mapping[str, np.ndarray]) -> None:
    """Raise UsageError for an input that is not finite. An attention mask may hold negative infinity."""
    for name, array in inputs.items():
        if np.isnan(array).any() or np.isposinf(array).any():
            raise UsageError(f"{name} holds NaN or infinity: pass finite numbers")


def _has_host_sampler(program: Program) -> bool:
    return any(isinstance(call, Sample) for call in program.calls)


def _check_options(program: Program, batch: int, guidance_scale: float, cuda_graph: bool) -> None:
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    if not math.isfinite(guidance_scale):
        raise UsageError(f"guidance_scale must be finite, got {guidance_scale}")
    if program.contract.guidance == "none" and guidance_scale != 1.0:
        raise UsageError(
            f"guidance_scale is {guidance_scale:g}, but the program was made without guidance: make it with guidance "
            "layout 'concat', or leave guidance_scale out"
        )
    if cuda_graph and _has_host_sampler(program):
        raise UsageError(
            f"cuda_graph cannot hold the steps of {program.contract.sampler.class_name}, which run on the host: leave "
            "it out, or use a linear sampler"
        )

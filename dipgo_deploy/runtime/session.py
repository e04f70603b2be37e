"""The interpreter: a program's calls, bound once to the buffers of a backend and then simply called in order.

Nothing is decided or allocated while images are made. Every run overwrites all that it reads: the caller's slots first,
then what the calls give, and a sampler with a history starts anew.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.program import Call, Combine, Program, Run, Sample
from dipgo_deploy.runtime.backend import Backend, BoundCall

__all__ = ["Session"]


class Session:
    """One program on one backend, for a batch size and guidance scale. One run at a time.

    Args:
        program: what to run.
        backend: where; it holds the graphs.
        batch: number of images of a run.
        guidance_scale: weight of the conditional output; must be 1 in a program without guidance.
        cuda_graph: after a first run, replay all calls as one CUDA graph.

    Raises:
        UsageError: a batch below 1, a guidance scale that is not finite or has nothing to act on, or a CUDA graph of a
            sampler that runs on the host.
        InputError: the program is inconsistent, or a graph is damaged or does not fit it.
    """

    def __init__(
        self,
        program: Program,
        backend: Backend,
        batch: int,
        guidance_scale: float = 1.0,
        *,
        cuda_graph: bool = False,
    ) -> None:
        _check_options(program, batch, guidance_scale)
        _check_program(program)
        self.program, self.backend, self.batch, self.guidance_scale = program, backend, batch, guidance_scale
        self._sizes = program.contract.sizes(batch)
        self._specs = {spec.name: spec for spec in program.slots}
        self._buffers = {name: backend.allocate(spec, self._sizes) for name, spec in self._specs.items()}
        self._stepper: Any = None
        if any(isinstance(call, Sample) for call in program.calls):
            # Only samplers that are not linear need diffusers at run time.
            from dipgo_deploy.supernet.stepper import SamplerStepper

            self._stepper = SamplerStepper(program.contract.sampler)
        if cuda_graph and self._stepper is not None:
            raise UsageError(
                f"cuda_graph cannot hold the steps of {program.contract.sampler.class_name}, which run on the host: "
                "leave it out, or take a sampler that is linear"
            )
        self.calls: tuple[BoundCall, ...] = tuple(self._bind(call) for call in program.calls)
        self._cuda_graph = cuda_graph
        self._replay: BoundCall | None = None

    def run(self, noise: np.ndarray, conditioning: Mapping[str, np.ndarray], seed: int | None = None) -> np.ndarray:
        """Make a batch of images.

        Args:
            noise: (B, C, H, W), standard normal.
            conditioning: every network input but latent and timestep, by name, rows first.
            seed: of noise that the sampler itself draws: image i takes ``seed + i`` (None: 0).

        Returns:
            Images (B, C, H, W) in the dtype of the image's slot, float32 as a rule.

        Raises:
            UsageError: an input is missing, unknown, or of a wrong shape or dtype.
        """
        self.begin(noise, conditioning, seed)
        self.go()
        return self.slot(self.program.image)

    def go(self) -> None:
        """Make all calls, on slots that ``begin`` has filled. On a GPU they are queued, and nobody waits for them."""
        with self.backend.running():
            for call in (self._replay,) if self._replay else self.calls:
                call()
        if self._cuda_graph and self._replay is None:
            self._replay = self.backend.captured(self.calls)

    def iterate(
        self, noise: np.ndarray, conditioning: Mapping[str, np.ndarray], seed: int | None = None
    ) -> Iterator[tuple[int, Call]]:
        """As ``run``, yielding the index of each call and the call after it is done; look with ``slot``."""
        self.begin(noise, conditioning, seed)
        for index, (call, act) in enumerate(zip(self.program.calls, self.calls, strict=True)):
            with self.backend.running():
                act()
            yield index, call

    def begin(self, noise: np.ndarray, conditioning: Mapping[str, np.ndarray], seed: int | None = None) -> None:
        """Fill the caller's slots and start a sampler's history anew; ``run`` and ``iterate`` do so by themselves.

        Raises UsageError as ``run`` does.
        """
        wanted = dict(self.program.conditioning)
        if odd := sorted(wanted.keys() ^ conditioning.keys()):
            found = "missing" if odd[0] in wanted else "unknown"
            names = ", ".join(wanted) or "none"
            raise UsageError(f"conditioning {odd[0]!r} is {found}: the program takes {names}")
        self._write("noise", self.program.noise, noise)
        for name, slot in wanted.items():
            self._write(f"conditioning {name!r}", slot, conditioning[name])
        if self._stepper is not None:
            self._stepper.restart(self.batch, seed)

    def slot(self, name: str) -> np.ndarray:
        """A copy of what a slot holds now. Raises UsageError for an unknown name."""
        self._check_slot(name)
        return self.backend.read(self._buffers[name])

    def buffer(self, name: str) -> Any:
        """A slot's own memory, an array or a tensor of the backend, to be filled or looked at without a copy.

        Raises UsageError for an unknown name.
        """
        self._check_slot(name)
        return self._buffers[name]

    def write(self, name: str, array: np.ndarray) -> None:
        """Put ``array`` into a slot. Raises UsageError for an unknown name, a wrong shape or dtype."""
        self._check_slot(name)
        self._write(f"slot {name}", name, array)

    def _check_slot(self, name: str) -> None:
        if name not in self._specs:
            raise UsageError(f"there is no slot {name!r}: the program has {', '.join(self._specs)}")

    def _write(self, what: str, name: str, array: np.ndarray) -> None:
        spec, array = self._specs[name], np.asarray(array)
        wanted = spec.resolve(self._sizes)
        if array.shape != wanted:
            raise UsageError(f"{what} must have shape {wanted}, found {array.shape}: pass one row per image and half")
        # NumPy does not know bfloat16; any float may become one.
        target = np.dtype(np.float16 if spec.dtype == "bfloat16" else spec.dtype)
        if not np.can_cast(array.dtype, target, "same_kind"):
            raise UsageError(f"{what} must have dtype {spec.dtype}, found {array.dtype}: convert it")
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

        def act() -> None:
            before, guided = torch.from_numpy(read(latent)), torch.from_numpy(read(output))
            self._stepper.scale_input(call.step, before)  # some schedulers find their place in the history here
            write(target, self._stepper.advance(call.step, guided, before).numpy())

        return act


def _check_options(program: Program, batch: int, guidance_scale: float) -> None:
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    if not math.isfinite(guidance_scale):
        raise UsageError(f"guidance_scale must be finite, got {guidance_scale}")
    if program.contract.guidance == "none" and guidance_scale != 1.0:
        raise UsageError(
            f"guidance_scale is {guidance_scale:g}, but the program was made without guidance: make it with guidance "
            "layout 'concat', or leave the scale at 1"
        )


def _check_program(program: Program) -> None:
    """InputError for slots that are not declared or declared twice, and for calls that overwrite what they read."""
    declared = Counter(slot.name for slot in program.slots)
    for name, count in declared.items():
        if count > 1:
            raise InputError(f"the program declares slot {name} {count} times: re-export")
    ends = ([program.noise, *(slot for _, slot in program.conditioning)], [program.image])
    for index, (reads, writes) in enumerate([ends, *map(_slots_of, program.calls)]):
        where = f"call {index - 1}" if index else "the program"
        for name in (*reads, *writes):
            if name not in declared:
                raise InputError(f"{where} names slot {name!r}, which the program does not declare: re-export")
        if index and isinstance(program.calls[index - 1], Run):
            _check_run(where, reads, writes)


def _check_run(where: str, reads: list[str], writes: list[str]) -> None:
    if shared := set(reads) & set(writes):
        raise InputError(f"{where} writes slot {min(shared)} while it reads it: re-export")
    if len(set(writes)) < len(writes):
        raise InputError(f"{where} writes two outputs to one slot: re-export")


def _slots_of(call: Call) -> tuple[list[str], list[str]]:
    if isinstance(call, Run):
        return [slot for _, slot in call.inputs], [slot for _, slot in call.outputs]
    if isinstance(call, Combine):
        return [term.slot for term in call.terms], [call.target]
    return [call.latent, call.output], [call.target]

"""Checks of a call against the contract: latent shape, rows, conditioning, guidance, and the pipeline's scheduler.

1. The latent has the contract's shape, with height and width within its ranges. The rows are a batch within the range.
2. Conditioning has the shape that was traced, with a text length within the contract's range.
3. Guidance rows are present if and only if the contract has guidance. Under ``concat`` both halves of the rows hold the
   same latents at every step. Without guidance they may be equal at the first step (two prompts, one seed), not later.
4. A denoiser sees only timesteps, which many schedulers share. So the schedulers of watched pipelines are compared with
   the contract's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch

from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.tensors import ROWS, SizeRange, TensorSpec
from dipgo_deploy.models.schedulers import is_recorded_as
from dipgo_deploy.pipeline.calls import NetworkCall, RefusedCall

__all__ = ["CallCheck", "CallSizes", "SchedulerCheck"]


@dataclass(frozen=True)
class CallSizes:
    """The sizes of a call: images, and the value of every free size as pairs of symbol and value."""

    batch: int
    free: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, contract: Contract, batch: int, chosen: Mapping[str, int]) -> CallSizes:
        """The sizes of a call under a contract, with the usual value of every size that is not chosen."""
        values = contract.sizes(batch, chosen)
        return cls(batch, tuple((name, values[name]) for name in contract.ranges))


@dataclass(frozen=True)
class CallCheck:
    """Checks calls against a contract.

    Attributes:
        contract: of the bundle.
        inputs: specs of the network's inputs, the latent first.
    """

    contract: Contract
    inputs: Sequence[TensorSpec]

    def check(self, call: NetworkCall) -> CallSizes:
        """The sizes of a call. Raises RefusedCall if shapes or rows are outside the contract."""
        expected, shape = self.contract.latent_dims, tuple(call.latent.shape[1:])
        allowed_sizes = [self.contract.ranges[dim] if isinstance(dim, str) else dim for dim in expected]
        if len(shape) != len(expected) or not all(map(_takes, allowed_sizes, shape)):
            raise RefusedCall(
                f"the bundle is made for latents of shape ({', '.join(map(str, allowed_sizes))}), got {shape}: set "
                "height and width, and use_resolution_binning=False where the pipeline has it (call_arguments gives "
                "them)"
            )
        rows = len(call.latent)
        batch, remainder = divmod(rows, self.contract.rows_per_image)
        if remainder:
            raise RefusedCall(self._guidance_message("an odd number of rows"))
        allowed = self.contract.batch
        if not allowed.min <= batch <= allowed.max:
            raise RefusedCall(
                f"the bundle takes {allowed.min} to {allowed.max} images, got {batch}: change the number of "
                "prompts or num_images_per_prompt"
            )
        chosen = self._chosen(call)
        sizes = {**self.contract.sizes(batch, chosen), ROWS: rows}
        for spec in self.inputs[1:]:
            self._check_conditioning(spec, call, sizes)
        return CallSizes.of(self.contract, batch, chosen)

    def _chosen(self, call: NetworkCall) -> dict[str, int]:
        """The free sizes of a call, read from the axes that consist of one."""
        sides = zip(self.contract.latent_dims, call.latent.shape[1:], strict=True)
        chosen = {dim: size for dim, size in sides if isinstance(dim, str)}
        for spec in (spec for spec in self.inputs[1:] if spec.name in call.conditioning):
            for axis, dim in enumerate(spec.shape):
                shape = call.conditioning[spec.name].shape
                if isinstance(dim, str) and dim in self.contract.ranges and axis < len(shape):
                    chosen.setdefault(dim, shape[axis])
        for name, value in chosen.items():
            allowed = self.contract.ranges[name]
            if not allowed.has(value):
                raise RefusedCall(
                    f"the bundle takes {allowed} {name}, got {value}: pass a shorter text, or make a schedule with a "
                    f"wider range of {name}"
                )
        return chosen

    def _check_conditioning(self, spec: TensorSpec, call: NetworkCall, sizes: Mapping[str, int]) -> None:
        if spec.name not in call.conditioning:
            return
        expected, shape = spec.resolve(sizes), tuple(call.conditioning[spec.name].shape)
        if shape != expected:
            raise RefusedCall(f"{spec.name} must have shape {expected}, got {shape}: pass the shape that was traced")

    def check_guidance(self, call: NetworkCall, *, first: bool) -> None:
        """Check that the rows of a call show the contract's guidance layout.

        Args:
            call: the call.
            first: whether this is the first call of a run.

        Raises:
            RefusedCall: the rows show another guidance layout.
        """
        if self.contract.guidance == "concat" and not _repeats(call.latent, 2):
            raise RefusedCall(self._guidance_message("two halves of rows with different latents"))
        if self.contract.guidance == "none" and not first:
            for copies, times in ((2, "twice"), (3, "three times")):
                if _repeats(call.latent, copies) and not _repeats_conditioning(call, copies):
                    raise RefusedCall(self._guidance_message(f"every latent {times}, with different conditioning"))

    def _guidance_message(self, rows: str) -> str:
        if self.contract.guidance == "concat":
            return (
                f"the bundle is made for guidance 'concat' (rows without and with condition), got {rows}: set a "
                "guidance_scale above 1, or make a schedule with guidance 'none'"
            )
        return (
            f"the bundle is made for guidance 'none', got {rows}: set guidance_scale=1, or make a schedule with "
            "guidance 'concat'"
        )


def _takes(allowed: SizeRange | int, size: int) -> bool:
    return allowed.has(size) if isinstance(allowed, SizeRange) else allowed == size


def _repeats(tensor: torch.Tensor, copies: int) -> bool:
    """Whether the rows of a tensor are ``copies`` equal parts."""
    count, rest = divmod(len(tensor), copies)
    return not rest and all(torch.equal(part, tensor[:count]) for part in tensor.split(count)[1:])


def _repeats_conditioning(call: NetworkCall, copies: int) -> bool:
    return all(_repeats(tensor, copies) for tensor in call.conditioning.values())


class SchedulerCheck:
    """Compares the schedulers of watched pipelines with the contract's. It does not keep the pipelines alive.

    Args:
        sampler: of the contract.
    """

    def __init__(self, sampler: SamplerSpec) -> None:
        self._sampler = sampler
        self._pipelines: WeakSet[Any] = WeakSet()
        self._accepted: Any = None

    def watch(self, pipeline: Any) -> None:
        """Check this pipeline from now on."""
        self._pipelines.add(pipeline)

    def check(self) -> None:
        """Raise RefusedCall if a watched pipeline has another scheduler, or one that skips its first step."""
        for pipeline in self._pipelines:
            scheduler = pipeline.scheduler
            # The comparison is slow, so a scheduler that was accepted once is not compared at every step.
            if scheduler is not self._accepted and not is_recorded_as(scheduler, self._sampler):
                raise RefusedCall(
                    f"the bundle is made for {self._sampler.class_name} with the config of its contract, the pipeline "
                    f"has a {type(scheduler).__name__} of another class or config: set pipeline.scheduler = "
                    "models.scheduler_from_spec(contract.sampler)"
                )
            self._accepted = scheduler
            if _skips_first_step(scheduler):
                raise RefusedCall(
                    f"the pipeline's {type(scheduler).__name__} has its first timestep twice, so diffusers skips the "
                    "first step and fails after the last: choose other noise levels, or generate without a pipeline"
                )


def _skips_first_step(scheduler: Any) -> bool:
    """Whether a run that is about to begin starts at the second of two equal timesteps. Pipelines may prevent it."""
    begins = getattr(scheduler, "begin_index", 0) is None and getattr(scheduler, "step_index", 0) is None
    timesteps = scheduler.timesteps
    return begins and len(timesteps) > 1 and bool(timesteps[0] == timesteps[1])

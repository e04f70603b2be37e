"""Shapes, rows and guidance of a call against the contract; every refusal names both sides.

1. A latent of another shape; rows that are no batch of the contract.
2. Conditioning of another shape than was traced.
3. Guidance rows where the contract has none, or the other way round. Under ``concat`` both halves of the rows hold the
   same latents at every step. Without guidance they may do so at the first step (two prompts, one seed), not after.

Whether watched pipelines still have the scheduler that a bundle was made for.

A denoiser sees timesteps alone, and many schedulers share theirs. A pipeline that is watched is asked for its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch

from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.models.samplers import is_recorded_as
from dipgo_deploy.pipeline.calls import NetworkCall, RefusedCall

__all__ = ["CallCheck", "PipelineCheck"]


@dataclass(frozen=True)
class CallCheck:
    """Checks calls against a contract and the specs of the network's inputs (the latent first)."""

    contract: Contract
    inputs: Sequence[TensorSpec]

    def check(self, call: NetworkCall) -> int:
        """The number of images of a call. Raises RefusedCall where shapes or rows lie outside the contract."""
        wanted, found = self.contract.latent_shape, tuple(call.latent.shape[1:])
        if found != wanted:
            raise RefusedCall(f"the bundle is made for latents of shape {wanted}, found {found}: set height and width")
        rows = len(call.latent)
        batch, left = divmod(rows, self.contract.rows_per_image)
        if left:
            raise RefusedCall(self._guidance_text("an odd number of rows"))
        allowed = self.contract.batch
        if not allowed.min <= batch <= allowed.max:
            raise RefusedCall(f"the bundle takes {allowed.min} to {allowed.max} images, found {batch}: draw fewer")
        for spec in self.inputs[1:]:
            self._check_condition(spec, call, rows)
        return batch

    def _check_condition(self, spec: TensorSpec, call: NetworkCall, rows: int) -> None:
        if spec.name not in call.conditioning:
            return
        wanted, found = spec.resolve({"rows": rows}), tuple(call.conditioning[spec.name].shape)
        if found != wanted:
            raise RefusedCall(f"{spec.name} must have shape {wanted}, found {found}: give it as the model was traced")

    def check_guidance(self, call: NetworkCall, *, first: bool) -> None:
        """Raise RefusedCall where the rows of a call show another guidance layout than the contract's."""
        half, odd = divmod(len(call.latent), 2)
        alike = not odd and torch.equal(call.latent[:half], call.latent[half:])
        if self.contract.guidance == "concat" and not alike:
            raise RefusedCall(self._guidance_text("two halves of rows with different latents"))
        if self.contract.guidance == "none" and alike and not first and not _repeats(call, half):
            raise RefusedCall(self._guidance_text("every latent twice, with different conditioning"))

    def _guidance_text(self, found: str) -> str:
        if self.contract.guidance == "concat":
            return (
                f"the bundle is made for guidance 'concat' (rows without and with condition), found {found}: "
                "set a guidance_scale above 1, or make a schedule with guidance 'none'"
            )
        return (
            f"the bundle is made for guidance 'none', found {found}: set guidance_scale=1, or make a schedule with "
            "guidance 'concat'"
        )


def _repeats(call: NetworkCall, half: int) -> bool:
    """Whether the second half of the conditioning says what the first one says."""
    return all(torch.equal(tensor[:half], tensor[half:]) for tensor in call.conditioning.values())


class PipelineCheck:
    """Compares the schedulers of watched pipelines, which it does not keep alive, with ``sampler``."""

    def __init__(self, sampler: SamplerSpec) -> None:
        self._sampler = sampler
        self._pipelines: WeakSet[Any] = WeakSet()
        self._known: Any = None

    def watch(self, pipeline: Any) -> None:
        """Ask this pipeline too."""
        self._pipelines.add(pipeline)

    def check(self) -> None:
        """Raise RefusedCall where a watched pipeline has another scheduler; looked at once for each scheduler."""
        for pipeline in self._pipelines:
            scheduler = pipeline.scheduler
            if scheduler is not self._known and not is_recorded_as(scheduler, self._sampler):
                raise RefusedCall(
                    f"the bundle is made for {self._sampler.class_name} as its contract configures it, the pipeline "
                    f"has a {type(scheduler).__name__} of another class or config: put models.scheduler_from_spec(…) "
                    "back"
                )
            self._known = scheduler

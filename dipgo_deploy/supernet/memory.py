"""What one gradient step of a SoftChain will hold in memory, from one step of the live network for one image.

Every step after the first stays on the way back with what it hands on (kept features, prediction, latent) and, without
checkpoints, with all that autograd keeps of it. With them one step at a time, or one block of it, is computed again.
All of that grows with the batch; parameters have no gradient and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch.autograd.graph import saved_tensors_hooks

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.supernet.chain import ChainStep, Checkpoint, SoftChain
from dipgo_deploy.supernet.network import GuidedNetwork
from dipgo_deploy.supernet.stepper import SamplerStepper
from dipgo_deploy.supernet.surgery import gated

__all__ = ["GradientMemory", "StepBytes", "gradient_memory", "measure_step", "recompute_for"]


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one differentiable step for one image.

    ``crossing`` is handed on to the next step; ``saved`` is kept for the way back besides, ``outside`` the part of it
    that no block is answerable for (block inputs included), ``largest_block`` the most that one block keeps, and
    ``largest`` the largest single tensor.
    """

    crossing: int
    saved: int
    outside: int
    largest_block: int
    largest: int


@dataclass(frozen=True)
class GradientMemory:
    """Bytes of one gradient step of a whole chain.

    ``per_step_bytes``: of one step on its way back; ``crossing_bytes``: of all that steps hand on to one another;
    ``activations_bytes``: the most that is kept for the way back at one time; ``peak_bytes``: with gradients.
    """

    checkpoint: Checkpoint
    per_step_bytes: int
    crossing_bytes: int
    activations_bytes: int
    peak_bytes: int

    @property
    def text(self) -> str:
        """One line for people."""
        parts = f"{_text(self.crossing_bytes)} between steps, {_text(self.per_step_bytes)} a step"
        return f"a gradient step holds {_text(self.peak_bytes)} with checkpoint {self.checkpoint} ({parts})"


def gradient_memory(step: StepBytes, called: int, batch: int, recompute: Checkpoint) -> GradientMemory:
    """Memory of a gradient step over ``called`` network calls, the first of which has no gradient, for ``batch``."""
    own = batch * (step.outside + step.largest_block if recompute == "block" else step.saved)
    crossing = called * batch * step.crossing
    kept = max(called - 1, 1) if recompute == "none" else 1
    activations = crossing + kept * own
    # While a tensor's gradient is found, those of its reader and of another branch are about.
    return GradientMemory(recompute, own, crossing, activations, activations + 2 * batch * step.largest)


def recompute_for(step: StepBytes, called: int, batch: int, limit: int) -> Checkpoint:
    """The mode with the least recomputation that fits ``limit`` bytes; ``block``, the thriftiest, if none does."""
    for recompute in get_args(Checkpoint):
        if gradient_memory(step, called, batch, recompute).peak_bytes <= limit:
            return recompute
    return "block"


def measure_step(model: LoadedModel, graph: BlockGraph, contract: Contract, kind: Kind) -> StepBytes:
    """Run two steps of ``model`` for one image, the second with gradients by half-open gates, and count."""
    chain = SoftChain(model, graph, contract, kind, "none")
    network = GuidedNetwork(model, contract, model.conditioning([0], contract.guidance), contract.guidance_scale(None))
    latent = torch.randn(1, *contract.latent_shape, generator=torch.Generator().manual_seed(0))
    latent = latent.to(network.device, network.wide)
    step = ChainStep(chain, network, SamplerStepper(contract.sampler).timestep(0), [True] * len(graph.blocks))
    before = step.first(latent)
    blocks, outside = _Storages(), _Storages()
    names = [name for name in graph.block_names if name != PREDICTION]
    with torch.enable_grad(), gated(model.module, names, blocks.gate), outside.saved():
        gates = torch.full((len(graph.blocks),), 0.5, device=network.device).requires_grad_()
        after = step.blended(latent.requires_grad_(), gates, before)
    crossing, known = _Storages(), _Storages()
    crossing.add(tensor for tensors in after.values() for tensor in tensors)
    known.add([gates, latent, *model.module.parameters(), *model.module.buffers()])
    known.add(tensor for tensors in before.values() for tensor in tensors)
    return _counted(crossing, known, blocks, outside, 2 * latent.nbytes)


@dataclass
class _Storages:
    """Distinct storages, held so that none takes another's place, and the shares of single blocks."""

    found: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    parts: list[dict[int, torch.UntypedStorage]] = field(default_factory=list)

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        storages = [tensor.untyped_storage() for tensor in tensors]
        self.found |= {storage._cdata: storage for storage in storages}

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Add what autograd keeps inside the context; hooks inside one another take it from those outside."""
        with saved_tensors_hooks(lambda tensor: self.add([tensor]), lambda _: None):
            yield

    def gate(self, block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inside = _Storages()
        with inside.saved():
            feature = forward(*args, **kwargs)
        self.found |= inside.found
        self.parts.append(inside.found)
        return feature


def _counted(crossing: _Storages, known: _Storages, blocks: _Storages, outside: _Storages, latents: int) -> StepBytes:
    saved = {**blocks.found, **outside.found}
    own = saved.keys() - crossing.found.keys() - known.found.keys()
    inside = [sum(part[key].nbytes() for key in part.keys() & own) for part in blocks.parts]
    return StepBytes(
        crossing=latents + sum(storage.nbytes() for storage in crossing.found.values()),
        saved=sum(saved[key].nbytes() for key in own),
        outside=sum(saved[key].nbytes() for key in own & outside.found.keys()),
        largest_block=max(inside, default=0),
        largest=max((saved[key].nbytes() for key in own), default=0),
    )


def _text(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"

"""The SuperNet over all steps: a trajectory under soft gates, differentiable in every gate (DiP-GO §3.2).

1. Step 0 computes everything. At step t block k gives ``f_t = g B(x) + (1 - g) f_(t-1)``, where g is its gate. Under
   residual reuse it gives ``g B(x) + (1 - g) (x + r_(t-1))``. Later steps reuse the blended value, still attached, so
   gradients flow along the chain of steps. Hard gates give the reference trajectory of that schedule, bit for bit.
2. A block is not ``live`` at a step that does not need it. Then its kept feature stays the same. Inside the step its
   gate still acts, so the gradient of a reused consumer sees its producers by their own gates.
3. A closed step makes no call: its prediction is reused for certain (gate exactly 0), and it keeps nothing. The
   gradient of its gate is ``<dL/df, B(x) - f>`` with the step computed in full. ``Trajectory.closed_gradients``
   computes it after the backward pass, for many steps in one call of the network.
4. Checkpoint ``step`` keeps only the tensors that cross from step to step, and recomputes each step in the backward
   pass. Checkpoint ``block`` also recomputes every block inside that step.
5. Features that the network writes to in place after the block are kept as copies. Step 0 finds out which blocks these
   are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.liveness import is_residual
from dipgo_deploy.supernet.backup import block_input, flatten_feature
from dipgo_deploy.supernet.network import Denoiser, GuidedNetwork
from dipgo_deploy.supernet.stepper import SamplerStepper
from dipgo_deploy.supernet.surgery import gated

__all__ = ["ChainStep", "Checkpoint", "ClosedStep", "Kept", "SoftChain", "Trajectory"]

Checkpoint = Literal["none", "step", "block"]
"""What the backward pass recomputes instead of keeping."""

Kept = dict[str, list[torch.Tensor]]
"""Tensors that cross from one step to the next: features or residuals by block, and the prediction."""


@dataclass(frozen=True)
class ClosedStep:
    """A step without a call.

    Attributes:
        step: its number.
        latent: its scaled latent (B, C, H, W).
        timestep: its timestep.
        held: the prediction that it reuses, which retains its gradient.
    """

    step: int
    latent: torch.Tensor
    timestep: float
    held: torch.Tensor


@dataclass(frozen=True)
class Trajectory:
    """A run under gates.

    Attributes:
        image: the last latent (B, C, H, W).
        network: the network with the run's conditioning.
        closed: the steps that made no call.
    """

    image: torch.Tensor
    network: GuidedNetwork
    closed: tuple[ClosedStep, ...]

    @torch.no_grad()
    def closed_gradients(self, rows: int = 64) -> dict[int, float]:
        """Gradient of the prediction's gate at each closed step, after a backward pass.

        A call of the network takes at most ``rows`` rows.
        """
        size = max(1, rows // len(self.network.rows_of(self.image)))
        gradients: dict[int, float] = {}
        for start in range(0, len(self.closed), size):
            part = self.closed[start : start + size]
            predictions = self.network.many([c.latent for c in part], [c.timestep for c in part])
            for closed, prediction in zip(part, predictions, strict=True):
                gradient = closed.held.grad
                product = 0.0 if gradient is None else float((gradient * (prediction - closed.held)).sum())
                gradients[closed.step] = product
        return gradients


class SoftChain:
    """All steps of one contract under gates of shape (steps, blocks).

    Args:
        model: the network, without gradients of its own.
        graph: its blocks. The columns of the gates are ``graph.block_names``.
        contract: sampler and guidance.
        kind: whether features or residuals are reused.
        recompute: see Checkpoint.

    Raises:
        UsageError: ``recompute`` is unknown.
    """

    def __init__(
        self, model: Denoiser, graph: BlockGraph, contract: Contract, kind: Kind, recompute: Checkpoint = "step"
    ) -> None:
        if recompute not in get_args(Checkpoint):
            raise UsageError(f"checkpoint {recompute!r} is unknown: choose {', '.join(get_args(Checkpoint))}")
        self.model, self.graph, self.contract, self.kind, self.recompute = model, graph, contract, kind, recompute
        self._column = {name: index for index, name in enumerate(graph.block_names)}
        self._gated = [name for name in graph.block_names if name != PREDICTION]
        self._written: set[str] = set()
        self._stepper = SamplerStepper(contract.sampler)

    def run(
        self,
        gates: torch.Tensor,
        noise: torch.Tensor | np.ndarray,
        conditioning: Mapping[str, torch.Tensor | np.ndarray],
        *,
        live: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        seed: int | None = None,
    ) -> Trajectory:
        """Run all steps. The image is attached to ``gates``.

        Args:
            gates: (steps, blocks) in [0, 1], where 1 computes. Row 0 counts as all ones.
            noise: (B, C, H, W), standard normal.
            conditioning: every network input but latent and timestep, by name, rows first.
            live: (steps, blocks), False where the kept feature stays the same. Default: all True.
            guidance_scale: weight of the conditional output under concatenated guidance.
            seed: of the sampler's own noise.

        Returns:
            The image and the closed steps.

        Raises:
            UsageError: the gates have another shape.
        """
        shape = (self.contract.sampler.calls, len(self._column))
        if tuple(gates.shape) != shape:
            raise UsageError(f"gates must have the shape {shape} (steps, blocks), got {tuple(gates.shape)}")
        live = torch.ones(shape, dtype=torch.bool) if live is None else live
        network = GuidedNetwork(self.model, self.contract, conditioning, guidance_scale)
        stepper, closed = self._stepper, list[ClosedStep]()
        stepper.restart(len(noise), seed)
        latent = torch.as_tensor(noise).to(network.device, network.sampler_dtype) * stepper.initial_scale
        kept: Kept = {}
        for step in range(shape[0]):
            scaled = stepper.scale_input(step, latent)
            chain_step = ChainStep(self, network, stepper.timestep(step), live[step].tolist())
            if step == 0:
                kept = chain_step.first(scaled)
            elif chain_step.is_closed(gates[step]):
                closed.append(
                    ClosedStep(step, scaled.detach(), chain_step.timestep, _retaining_gradient(kept[PREDICTION][0]))
                )
                kept = {**kept, PREDICTION: [closed[-1].held]}
            else:
                kept = chain_step.blended(scaled, gates[step].to(network.device), kept)
            latent = stepper.advance(step, network.guided(kept[PREDICTION][0]), latent)
        return Trajectory(latent, network, tuple(closed))

    def is_residual(self, block: str) -> bool:
        """Whether reusing ``block`` means its input plus the kept residual."""
        return is_residual(self.graph, block, self.kind)


class ChainStep:
    """One step of a chain at ``timestep``. ``live`` tells for every block whether its feature is kept."""

    def __init__(self, chain: SoftChain, network: GuidedNetwork, timestep: float, live: list[bool]) -> None:
        self.chain, self.network, self.timestep = chain, network, timestep
        self.live = dict(zip(chain.graph.block_names, live, strict=True))

    @torch.no_grad()
    def first(self, latent: torch.Tensor) -> Kept:
        """Compute everything and return what is kept. No gate precedes step 0, so nothing carries a gradient."""
        kept: Kept = {}
        returned: list[tuple[str, torch.Tensor, int]] = []

        def gate(block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            feature = forward(*args, **kwargs)
            tensors = flatten_feature(feature)[0]
            returned.extend((block, tensor, tensor._version) for tensor in tensors)
            kept[block] = [tensor.clone() for tensor in self._stored(block, tensors, block_input(args, kwargs))]
            return feature

        kept[PREDICTION] = [self._call(gate, latent)]
        self.chain._written = {block for block, tensor, version in returned if tensor._version != version}
        return kept

    def is_closed(self, gates: torch.Tensor) -> bool:
        """Whether the step reuses its prediction for certain and keeps nothing."""
        zero = float(gates[self.chain._column[PREDICTION]].detach()) == 0.0
        return zero and not any(self.live[block] for block in self.chain._gated)

    def blended(self, latent: torch.Tensor, gates: torch.Tensor, kept: Kept) -> Kept:
        """What is kept after the step.

        Args:
            latent: scaled latent (B, C, H, W).
            gates: the step's gates (blocks,).
            kept: what was kept before the step.

        Returns:
            Features or residuals by block, and the blended prediction.
        """
        if self.chain.recompute == "none" or not torch.is_grad_enabled():
            computed = self._run(latent, gates, kept)
        else:
            computed = checkpoint(self._run, latent, gates, kept, use_reentrant=False, preserve_rng_state=False)
        prediction = _blend(kept[PREDICTION][0], computed[PREDICTION][0], self._gate(gates, PREDICTION))
        return {**computed, PREDICTION: [prediction]}

    def _run(self, latent: torch.Tensor, gates: torch.Tensor, kept: Kept) -> Kept:
        """Run the gated network: what its blocks keep, and the computed prediction."""
        after: Kept = {}

        def gate(block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entry, weight = block_input(args, kwargs), self._gate(gates, block)
            tensors, template = flatten_feature(self._forward(forward, args, kwargs))
            stored, before = self._stored(block, tensors, entry), kept[block]
            blend = [_blend(old, new, weight) for old, new in zip(before, stored, strict=True)]
            own = [tensor.clone() for tensor in blend] if block in self.chain._written else blend
            after[block] = own if self.live[block] else before
            if self.chain.is_residual(block) and entry is not None:
                return template.rebuild([_blend(entry + before[0], tensors[0], weight)])
            return template.rebuild(blend)

        prediction = self._call(gate, latent)
        return {**after, PREDICTION: [prediction]}

    def _call(self, gate: Callable[..., Any], latent: torch.Tensor) -> torch.Tensor:
        with gated(self.chain.model.module, self.chain._gated, gate):
            return self.network(latent, self.timestep)

    def _forward(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.chain.recompute != "block" or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # A nested checkpoint frees only tensors that are positional arguments themselves, not those inside containers.
        leaves, spec = pytree.tree_flatten((args, kwargs))

        def recomputed(*flat: Any) -> Any:
            args, kwargs = pytree.tree_unflatten(flat, spec)
            return forward(*args, **kwargs)

        return checkpoint(recomputed, *leaves, use_reentrant=False, preserve_rng_state=False)

    def _stored(self, block: str, tensors: list[torch.Tensor], entry: torch.Tensor | None) -> list[torch.Tensor]:
        return [tensors[0] - entry] if self.chain.is_residual(block) and entry is not None else tensors

    def _gate(self, gates: torch.Tensor, block: str) -> torch.Tensor:
        return gates[self.chain._column[block]]


def _blend(old: torch.Tensor, new: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``gate * new + (1 - gate) * old``, exactly ``new`` at 1 and ``old`` at 0."""
    return torch.lerp(old, new, gate.to(new.dtype))


def _retaining_gradient(held: torch.Tensor) -> torch.Tensor:
    """A tensor of the same values that retains its gradient in the backward pass."""
    copy = held.view_as(held) if held.requires_grad else held.clone().requires_grad_()
    if torch.is_grad_enabled():
        copy.retain_grad()
    return copy

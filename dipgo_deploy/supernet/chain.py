"""The SuperNet over all steps: a trajectory under soft gates, differentiable in every gate (DiP-GO §3.2).

1. Step 0 computes everything. At step t block k gives ``f_t = g B(x) + (1 - g) f_(t-1)`` with g its gate, or under
   residual reuse ``g B(x) + (1 - g) (x + r_(t-1))``. The blended value is what later steps reuse, still attached, so
   gradients flow along the chain of steps. Hard gates give the reference trajectory of that schedule, bit for bit.
2. Where a block is not ``live`` at a step (nothing of that step needs it), what was kept stays. Inside the step it
   still acts by its own gate: a reused consumer is asked what it would gain with its producers as they wish to be.
3. A step whose prediction is reused for certain (gate exactly 0) and that keeps nothing makes no call. What its gate
   would gain, ``<dL/df, B(x) - f>`` with the step computed in full, is found after the backward pass, for many steps in
   one call of the network, by ``Trajectory.closed_gradients``.
4. Checkpoints: ``step`` keeps between steps only what crosses them and computes each step again on the way back;
   ``block`` does so inside that step for every block too.
5. What the network writes to in place after a block gave it is kept as a copy; step 0 finds out which blocks those are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.liveness import is_residual
from dipgo_deploy.supernet.backup import block_input
from dipgo_deploy.supernet.features import flatten_feature
from dipgo_deploy.supernet.network import Denoiser, GuidedNetwork
from dipgo_deploy.supernet.stepper import SamplerStepper
from dipgo_deploy.supernet.surgery import gated
from dipgo_deploy.supernet.trajectory import Closed, Trajectory, watched

__all__ = ["ChainStep", "Checkpoint", "Kept", "SoftChain"]

Checkpoint = Literal["none", "step", "block"]
"""What is computed again on the way back instead of kept."""

Kept = dict[str, list[torch.Tensor]]
"""Tensors that cross from one step to the next: features or residuals by block, the prediction included."""


class SoftChain:
    """All steps of one contract under gates of shape (steps, blocks).

    Args:
        model: the network, without gradients of its own.
        graph: its blocks; columns of the gates are ``graph.block_names``.
        contract: sampler and guidance.
        kind: what a reused block stands for.
        recompute: see Checkpoint.

    Raises UsageError for an unknown ``recompute``.
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
        """All steps, their last latent attached to ``gates``.

        Args:
            gates: (steps, blocks) in [0, 1], 1 computes; row 0 is taken as all ones.
            noise: (B, C, H, W), standard normal.
            conditioning: every network input but latent and timestep, by name, rows first.
            live: (steps, blocks), False where what was kept stays; all True if not given.
            guidance_scale: weight of the conditional output under concatenated guidance.
            seed: of the sampler's own noise.

        Raises UsageError for gates of another shape.
        """
        wanted = (self.contract.sampler.calls, len(self._column))
        if tuple(gates.shape) != wanted:
            raise UsageError(f"gates must have shape {wanted} (steps, blocks), found {tuple(gates.shape)}: mend them")
        live = torch.ones(wanted, dtype=torch.bool) if live is None else live
        network = GuidedNetwork(self.model, self.contract, conditioning, guidance_scale)
        stepper, closed = self._stepper, list[Closed]()
        stepper.restart(len(noise), seed)
        latent = torch.as_tensor(noise).to(network.device, network.wide) * stepper.initial_scale
        kept: Kept = {}
        for step in range(wanted[0]):
            scaled = stepper.scale_input(step, latent)
            act = ChainStep(self, network, stepper.timestep(step), live[step].tolist())
            if step == 0:
                kept = act.first(scaled)
            elif act.is_closed(gates[step]):
                closed.append(Closed(step, scaled.detach(), act.timestep, watched(kept[PREDICTION][0])))
                kept = {**kept, PREDICTION: [closed[-1].held]}
            else:
                kept = act.blended(scaled, gates[step].to(network.device), kept)
            latent = stepper.advance(step, network.guided(kept[PREDICTION][0]), latent)
        return Trajectory(latent, network, tuple(closed))

    def is_residual(self, block: str) -> bool:
        """Whether reusing ``block`` means its input plus the kept residual."""
        return is_residual(self.graph, block, self.kind)


class ChainStep:
    """One step of a chain at ``timestep``; ``live`` says of every block whether what it computes is kept."""

    def __init__(self, chain: SoftChain, network: GuidedNetwork, timestep: float, live: list[bool]) -> None:
        self.chain, self.network, self.timestep = chain, network, timestep
        self.live = dict(zip(chain.graph.block_names, live, strict=True))

    @torch.no_grad()
    def first(self, latent: torch.Tensor) -> Kept:
        """Everything computed: what is kept of it. No gate comes before, so there is no gradient to keep."""
        kept: Kept = {}
        given: list[tuple[str, torch.Tensor, int]] = []

        def gate(block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            feature = forward(*args, **kwargs)
            tensors = flatten_feature(feature)[0]
            given.extend((block, tensor, tensor._version) for tensor in tensors)
            kept[block] = [tensor.clone() for tensor in self._stored(block, tensors, block_input(args, kwargs))]
            return feature

        kept[PREDICTION] = [self._call(gate, latent)]
        self.chain._written = {block for block, tensor, version in given if tensor._version != version}
        return kept

    def is_closed(self, gates: torch.Tensor) -> bool:
        """Whether the step certainly holds its prediction and changes nothing else that is kept."""
        zero = float(gates[self.chain._column[PREDICTION]].detach()) == 0.0
        return zero and not any(self.live[block] for block in self.chain._gated)

    def blended(self, latent: torch.Tensor, gates: torch.Tensor, kept: Kept) -> Kept:
        """What is kept after the step, given what was kept before it."""
        if self.chain.recompute == "none" or not torch.is_grad_enabled():
            found = self._run(latent, gates, kept)
        else:
            found = checkpoint(self._run, latent, gates, kept, use_reentrant=False, preserve_rng_state=False)
        prediction = _blend(kept[PREDICTION][0], found[PREDICTION][0], self._gate(gates, PREDICTION))
        return {**found, PREDICTION: [prediction]}

    def _run(self, latent: torch.Tensor, gates: torch.Tensor, kept: Kept) -> Kept:
        """The network under the blocks' gates: what they keep, and the prediction as computed."""
        found: Kept = {}

        def gate(block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entry, weight = block_input(args, kwargs), self._gate(gates, block)
            tensors, template = flatten_feature(self._forward(forward, args, kwargs))
            stored, before = self._stored(block, tensors, entry), kept[block]
            blend = [_blend(old, new, weight) for old, new in zip(before, stored, strict=True)]
            own = [tensor.clone() for tensor in blend] if block in self.chain._written else blend
            found[block] = own if self.live[block] else before
            if self.chain.is_residual(block) and entry is not None:
                return template.rebuild([_blend(entry + before[0], tensors[0], weight)])
            return template.rebuild(blend)

        prediction = self._call(gate, latent)
        return {**found, PREDICTION: [prediction]}

    def _call(self, gate: Callable[..., Any], latent: torch.Tensor) -> torch.Tensor:
        with gated(self.chain.model.module, self.chain._gated, gate):
            return self.network(latent, self.timestep)

    def _forward(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.chain.recompute != "block" or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Only tensors passed by position and bare are given up by a checkpoint inside another one.
        leaves, spec = pytree.tree_flatten((args, kwargs))

        def again(*given: Any) -> Any:
            args, kwargs = pytree.tree_unflatten(given, spec)
            return forward(*args, **kwargs)

        return checkpoint(again, *leaves, use_reentrant=False, preserve_rng_state=False)

    def _stored(self, block: str, tensors: list[torch.Tensor], entry: torch.Tensor | None) -> list[torch.Tensor]:
        return [tensors[0] - entry] if self.chain.is_residual(block) and entry is not None else tensors

    def _gate(self, gates: torch.Tensor, block: str) -> torch.Tensor:
        return gates[self.chain._column[block]]


def _blend(old: torch.Tensor, new: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``gate * new + (1 - gate) * old``, exactly ``new`` at 1 and ``old`` at 0."""
    return torch.lerp(old, new, gate.to(new.dtype))

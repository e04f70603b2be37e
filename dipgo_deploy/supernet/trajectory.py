"""What a run under gates leaves: its image, and the steps that made no call with what their gates would gain.

A step whose prediction is reused for certain makes no call on the way forward. The prediction that it held notes its
gradient in the backward pass; the network is asked afterwards for what such steps would have computed, many at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dipgo_deploy.supernet.network import GuidedNetwork

__all__ = ["Closed", "Trajectory", "watched"]


@dataclass(frozen=True)
class Closed:
    """A step without a call: its scaled latent (B, C, H, W), and the prediction it held, which notes its gradient."""

    step: int
    latent: torch.Tensor
    timestep: float
    held: torch.Tensor


@dataclass(frozen=True)
class Trajectory:
    """The ``image``, i.e. the last latent (B, C, H, W), and the steps that made no call."""

    image: torch.Tensor
    network: GuidedNetwork
    closed: tuple[Closed, ...]

    @torch.no_grad()
    def closed_gradients(self, rows: int = 64) -> dict[int, float]:
        """After a backward pass: the gradient of the prediction's gate at each closed step; ``rows`` at a time."""
        size = max(1, rows // len(self.network.rows_of(self.image)))
        found: dict[int, float] = {}
        for start in range(0, len(self.closed), size):
            part = self.closed[start : start + size]
            candidates = self.network.many([c.latent for c in part], [c.timestep for c in part])
            for closed, candidate in zip(part, candidates, strict=True):
                gradient = closed.held.grad
                gain = 0.0 if gradient is None else float((gradient * (candidate - closed.held)).sum())
                found[closed.step] = gain
        return found


def watched(held: torch.Tensor) -> torch.Tensor:
    """The same values as a tensor that notes its gradient, and passes it on."""
    found = held.view_as(held) if held.requires_grad else held.clone().requires_grad_()
    if torch.is_grad_enabled():
        found.retain_grad()
    return found

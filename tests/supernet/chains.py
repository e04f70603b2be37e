"""A small network in float64 for the SuperNet over all steps: three residual blocks, and the graph that fits it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.sampler import noise_for
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.supernet.chain import Checkpoint, SoftChain, Trajectory
from tests.search.graphs import chain_like

STEPS = 5
GRAPH = chain_like(3)
SHAPE = (4, 8, 8)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.mix(x) * scale)


class Network(nn.Module):
    """Stem, blocks and a tail that writes ``in_place`` to what the last block gave, if asked to."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.in_place, self.calls = in_place, 0
        self.stem, self.tail = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.transformer_blocks = nn.ModuleList(_Block() for _ in range(3))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        scale = (1 + timestep.to(sample.dtype) / 1000).view(-1, 1, 1, 1)
        x = self.stem(sample)
        for block in self.transformer_blocks:
            x = block(x, scale)
        x = x.mul_(2) if self.in_place else x * 2
        return self.tail(x) * scale


class Tiny:
    """The network as the SuperNet wants it."""

    def __init__(self, in_place: bool = False) -> None:
        torch.manual_seed(3)
        self.module = Network(in_place).double().eval().requires_grad_(False)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.module(**inputs)


def contract(guidance: str = "none", sampler: str = "ddim", steps: int = STEPS) -> Contract:
    spec = sampler_spec(sampler, steps, {"clip_sample": False})
    return Contract(GRAPH.model_class, GRAPH.model_digest, "float64", spec, guidance, SHAPE)


def soft_chain(kind: str = "output", recompute: Checkpoint = "none", sampler: str = "ddim") -> SoftChain:
    return SoftChain(Tiny(), GRAPH, contract(sampler=sampler), kind, recompute)


def run(chain: SoftChain, gates: torch.Tensor, live: torch.Tensor | None = None) -> Trajectory:
    return chain.run(gates, noise_for(range(2), SHAPE).astype(np.float64), {}, live=live)


def loss_of(trajectory: Trajectory) -> torch.Tensor:
    """A fixed direction of the image and a bit of its curvature."""
    direction = torch.randn(trajectory.image.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (direction * trajectory.image).mean() + trajectory.image.square().mean()


def columns() -> dict[str, int]:
    return {name: index for index, name in enumerate(GRAPH.block_names)}


LAST = columns()[PREDICTION]

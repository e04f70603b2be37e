"""The pruner: learned queries, one per step and block, that attend to each other and vote to keep or to reuse.

DiP-GO §3.3. A query is a learned vector. An encoder lets the queries see each other, and every query has a two-layer
head that turns it into a vote. Heads start with weight 0 and bias 1 on keep, so the search begins at the full model, or
at the votes of a prior. training.py turns votes into gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import numpy as np
import torch
from torch import nn

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.dipgo.options import Encoder

__all__ = ["Pruner", "PrunerShape", "spread_prior"]


@dataclass(frozen=True)
class PrunerShape:
    """Sizes of a pruner: ``steps`` × ``blocks`` queries of ``width``, heads with ``hidden`` units.

    Raises:
        UsageError: a size below 1, an unknown encoder, or a width that is not a multiple of the attention heads.
    """

    steps: int
    blocks: int
    width: int = 32
    hidden: int = 16
    encoder: Encoder = "attention"
    attention_heads: int = 4

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("steps", "blocks", "width", "hidden", "attention_heads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.encoder not in get_args(Encoder):
            raise UsageError(f"encoder {self.encoder!r} is unknown: choose {', '.join(get_args(Encoder))}")
        if self.width % self.attention_heads:
            raise UsageError(
                f"width {self.width} is not a multiple of {self.attention_heads} attention heads: change width"
            )


class Pruner(nn.Module):
    """Votes of shape (steps, blocks): the logit of keeping each block at each step.

    ``prior`` (steps, blocks) is added to the initial bias on keep.
    """

    def __init__(self, shape: PrunerShape, seed: int = 0, prior: np.ndarray | None = None) -> None:
        super().__init__()
        self.shape = shape
        count, width, hidden = shape.steps * shape.blocks, shape.width, shape.hidden
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.queries = nn.Parameter(torch.randn(count, width))
            self.encoder = _encoder(shape)
            self.first = nn.Parameter(torch.randn(count, width, hidden) * (2 / width) ** 0.5)
            self.first_bias = nn.Parameter(torch.zeros(count, hidden))
            self.second = nn.Parameter(torch.zeros(count, hidden, 2))
            self.second_bias = nn.Parameter(torch.tensor([0.0, 1.0]).repeat(count, 1))
        if prior is not None:
            self.second_bias.data[:, 1] += torch.as_tensor(prior.reshape(-1), dtype=torch.float32)

    def forward(self) -> torch.Tensor:
        """Logits of keep against reuse, (steps, blocks). Positive keeps."""
        seen = self.encoder(self.queries.unsqueeze(0)).squeeze(0)
        inner = torch.relu(torch.einsum("qw,qwh->qh", seen, self.first) + self.first_bias)
        votes = torch.einsum("qh,qhv->qv", inner, self.second) + self.second_bias
        return (votes[:, 1] - votes[:, 0]).view(self.shape.steps, self.shape.blocks)


def _encoder(shape: PrunerShape) -> nn.Module:
    if shape.encoder == "attention":
        return nn.TransformerEncoderLayer(
            shape.width, shape.attention_heads, 4 * shape.width, dropout=0.0, batch_first=True
        )
    return nn.Linear(shape.width, shape.width) if shape.encoder == "linear" else nn.Identity()


def spread_prior(steps: int, blocks: int, scale: float) -> np.ndarray:
    """Make a prior under which the steps that are kept first are evenly spread.

    Every step halves the longest gap that earlier steps left, because a computed step is held until the next.

    Args:
        steps: network calls.
        blocks: columns of the prior.
        scale: value of the first step. Values fall to 0.

    Returns:
        The prior (steps, blocks).
    """
    chosen = [0]
    while len(chosen) < steps:
        edges = [*sorted(chosen), steps]
        start, end = max(pairwise(edges), key=lambda gap: (gap[1] - gap[0], -gap[0]))
        chosen.append((start + end) // 2)
    prior = np.empty(steps)
    prior[chosen] = np.linspace(scale, 0.0, steps)
    return np.repeat(prior[:, None], blocks, axis=1)

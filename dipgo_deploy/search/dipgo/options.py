"""Options of the gradient search, and the presets that ship."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, get_args

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.method_options import MethodOptions

__all__ = ["PRESETS", "Attribution", "Budget", "Checkpoint", "Consistency", "DipgoOptions", "Encoder", "Order"]

# These names are declared here, not where they are used: options are checked before PyTorch is imported.
Optimiser = Literal["sgd", "adam"]
Budget = Literal["penalty", "projection"]
"""How compute is limited while the pruner trains."""

Attribution = Literal["cascade", "marginal", "own", "equal"]
"""How the cost of a step is attributed to its gates."""

Encoder = Literal["attention", "linear", "none"]
"""What connects the queries of the pruner: self-attention, one linear layer over each query, or nothing."""

Consistency = Literal["ssim", "l1", "l2", "psnr"]
"""Loss between the pruned and the full run's images. ``ssim`` is DiP-GO's, of images mapped to [0, 1] as bench does.

SSIM compares brightness, so it depends on where 0 lies. ``psnr`` is the mean of the logarithms of squared errors, so
that images that are good already count too.
"""

Checkpoint = Literal["auto", "none", "step", "block"]
"""What the backward pass recomputes: chosen by the free memory, nothing, every step, or every block."""

Order = Literal["bisection", "greedy"]
"""How scores become a schedule. ``bisection``: by score alone, the paper's text. ``greedy``: by bands of score, then
blocks from last to first, as the paper's reference code does."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimiser": get_args(Optimiser),
    "loss": get_args(Consistency),
    "cost": get_args(Attribution),
    "budget": get_args(Budget),
    "encoder": get_args(Encoder),
    "checkpoint": get_args(Checkpoint),
    "order": get_args(Order),
}

_WITH_A_TRAINED_PRUNER = ("from_pruner", "order", "polish")
"""Options that are allowed with ``from_pruner``. The others belong to training."""


@dataclass(frozen=True)
class DipgoOptions(MethodOptions):
    """Options of one gradient search. The defaults are those of the preset ``default``.

    Attributes:
        iterations: gradient steps.
        batch: images of one step.
        pool: distinct batches, used in turn. Each costs one full run.
        optimiser, learning_rate, weight_decay, clip: of the descent. The rate falls to 0 along half a cosine.
        loss: consistency between final images.
        sparsity_weight: weight of the cost under ``penalty`` (DiP-GO's α, 1 in the paper).
        floor: share of compute below which only consistency counts (DiP-GO's τ).
        budget: ``penalty`` adds the cost to the loss, as the paper does. ``projection`` draws a ratio from ``ratios``
            in every iteration, opens the best entries that fit, and moves the scores by benefit per cost.
        ratios: lowest and highest ratio that ``projection`` draws.
        prior: under ``projection``, how strongly the initial votes favour evenly spread steps.
        cost: how the cost of a step is attributed to its gates.
        encoder, width, hidden: architecture of the pruner.
        checkpoint: what the backward pass recomputes. ``auto`` recomputes the least that is estimated to fit into half
            of the free memory. It changes speed and memory, never the result.
        dtype: dtype of network and features. None keeps the model's dtype.
        first_seed: seed of the first image that the pruner is trained on.
        polish: full trajectories that exchanges after training may cost, 0 for none. None is 100 after training, and
            none for a trained pruner.
        order: how scores become a schedule.
        pruner: file of the pruner. Training continues from an existing file. None keeps the pruner in memory.
        from_pruner: file of a trained pruner, which gives a schedule for any ratio.

    Raises:
        UsageError: a value out of range, or a training option together with ``from_pruner``.
    """

    iterations: int = 10
    batch: int = 4
    pool: int = 2
    optimiser: Optimiser = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    loss: Consistency = "psnr"
    sparsity_weight: float = 1.0
    floor: float = 0.2
    budget: Budget = "projection"
    ratios: tuple[float, float] = (0.5, 0.9)
    prior: float = 1.0
    cost: Attribution = "marginal"
    encoder: Encoder = "attention"
    width: int = 32
    hidden: int = 16
    checkpoint: Checkpoint = "auto"
    dtype: str | None = None
    first_seed: int = 10_000_000
    polish: int | None = None
    order: Order = "bisection"
    pruner: Path | None = None
    from_pruner: Path | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("iterations", "batch", "pool"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"{name} must be a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "sparsity_weight", "prior", "polish", "first_seed"):
            number = getattr(self, name)
            if number is not None and not (math.isfinite(number) and number >= 0):
                raise UsageError(f"{name} must be at least 0, got {number}")
        if not 0 <= self.ratios[0] <= self.ratios[1] < 1:
            raise UsageError(f"ratios {self.ratios} are not a range in [0, 1): give the lowest and the highest")
        if not 0 <= self.floor < 1:
            raise UsageError(f"floor {self.floor} is not in [0, 1): give the share of compute to stop at, such as 0.2")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown: choose {', '.join(choices)}")
        if self.from_pruner is not None:
            self._check_trained()

    def _check_trained(self) -> None:
        if self.pruner is not None:
            raise UsageError("pruner is trained, from_pruner is trained already: give one of them")
        for each in fields(self):
            if each.name not in _WITH_A_TRAINED_PRUNER and getattr(self, each.name) != each.default:
                raise UsageError(
                    f"{each.name} belongs to training, but from_pruner names a trained pruner: leave one out"
                )

    def check_shared(self, changed: Collection[str]) -> None:
        """Refuse shared options that a trained pruner already fixes."""
        if self.from_pruner is None:
            return
        for name in ("seed", "classes", "prompts", "guidance_scale"):
            if name in changed:
                raise UsageError(f"{name} belongs to training, but from_pruner names a trained pruner: leave one out")
        if "images" in changed and not self.polish:
            raise UsageError(
                "images evaluate exchanges, but from_pruner makes none without polish: give polish, or leave images out"
            )

    @property
    def polish_budget(self) -> int:
        """Full trajectories for exchanges. 0 makes none."""
        if self.polish is None:
            return 0 if self.from_pruner else 100
        return self.polish


_PAPER = DipgoOptions(
    iterations=1000,
    batch=1,
    pool=1000,
    optimiser="sgd",
    learning_rate=0.1,
    weight_decay=1e-4,
    loss="ssim",
    budget="penalty",
    cost="cascade",
    width=512,
    hidden=128,
    polish=0,
)

PRESETS: Mapping[str, DipgoOptions] = {
    "default": DipgoOptions(),
    "paper": _PAPER,
    "paper-dit": replace(_PAPER, learning_rate=10.0),
}
"""Options by name. ``paper`` is DiP-GO's for U-Nets, ``paper-dit`` DiP-GO's for a DiT, whose learning rate is 10."""

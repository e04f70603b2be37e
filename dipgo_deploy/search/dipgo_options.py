"""What a gradient search is asked for, and the two ways of asking that ship."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.cost import Attribution
from dipgo_deploy.search.losses import Consistency
from dipgo_deploy.search.pruner import Encoder
from dipgo_deploy.supernet.chain import Checkpoint

__all__ = ["PRESETS", "DipgoOptions"]

Optimiser = Literal["sgd", "adam"]
Unit = Literal["macs", "ms"]
Budget = Literal["penalty", "projection"]
Auto = Literal["auto"]

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimiser": get_args(Optimiser),
    "loss": get_args(Consistency),
    "cost": get_args(Attribution),
    "unit": get_args(Unit),
    "budget": get_args(Budget),
    "encoder": get_args(Encoder),
    "checkpoint": ("auto", *get_args(Checkpoint)),
}


@dataclass(frozen=True)
class DipgoOptions:
    """Knobs of one gradient search; the defaults are those of the preset ``default``.

    Attributes:
        iterations: gradient steps.
        batch: images of one step.
        pool: distinct batches, used in turn; each costs one full run.
        prior: under ``projection``, how far the first votes favour evenly spread steps.
        optimiser, learning_rate, weight_decay, clip: of the descent; the rate falls to 0 along half a cosine.
        loss: consistency between final images.
        sparsity_weight: of the cost (their α); 1 in the paper.
        floor: share of compute below which consistency counts alone (their τ).
        budget: ``penalty`` adds the cost to the loss, as the paper does; ``projection`` opens, in every iteration, the
            best entries that a ratio drawn from ``ratios`` has room for, and lets benefit per cost move the scores.
        cost, unit: how the cost of a step is laid on gates, and whether it is MACs or measured ms.
        cost_table: digest of the latency table that costs and ratios are counted in; "" for none.
        encoder, width, hidden: of the pruner.
        checkpoint: what is computed again on the way back; ``auto`` takes the least that is predicted to fit half of
            the free memory. It changes speed and memory, never what is found.
        dtype: of network and features; None keeps the model's.
        seed, first_seed: of the pruner, and of the first image it is trained on.
        prompts: what the labels of a model mean that ``with_prompts`` made; a record, () for classes.
        classes: labels that images take in turn; all the model has, if none is given.
        guidance_scale: of all runs; None takes the contract's usual one.
        polish, polish_images: full trajectories that exchanges after the training may cost, 0 for none, and the images
            that judge them.

    Raises UsageError for a value that makes no sense.
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
    unit: Unit = "macs"
    cost_table: str = ""
    encoder: Encoder = "attention"
    width: int = 32
    hidden: int = 16
    checkpoint: Checkpoint | Auto = "auto"
    dtype: str | None = None
    seed: int = 0
    first_seed: int = 10_000_000
    prompts: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    guidance_scale: float | None = None
    polish: int = 100
    polish_images: int = 8

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("iterations", "batch", "pool", "polish_images"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} makes no sense: give 1 or more")
        for name in ("learning_rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"{name} {getattr(self, name)} is no positive number: give one")
        for name in ("weight_decay", "sparsity_weight", "prior", "polish", "seed", "first_seed"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"{name} {getattr(self, name)} makes no sense: give 0 or more")
        if not 0 <= self.ratios[0] <= self.ratios[1] < 1:
            raise UsageError(f"ratios {self.ratios} are no range in [0, 1): give the lowest and the highest")
        if not 0 <= self.floor < 1:
            raise UsageError(f"floor {self.floor} is not in [0, 1): give the share of compute to stop at, such as 0.2")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown: choose {', '.join(choices)}")


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
"""Settings by name. ``paper`` are DiP-GO's for U-Nets, ``paper-dit`` those for a DiT, whose learning rate is 10."""

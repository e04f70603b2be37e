"""Options of the gradient search for learned samplers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.fit.options import FitOptions, TeacherName
from dipgo_deploy.search.method_options import MethodOptions

__all__ = ["LearnedOptions", "LossName"]

LossName = Literal["log-mse", "perceptual"]
"""``log-mse``: mean logarithm of the squared errors of images. ``perceptual``: the same, of features of images."""

Recompute = Literal["auto", "call", "none"]
"""What the backward pass recomputes: each call of a large network, each call, or nothing."""

_FITTED = 8
"""Most trajectories that the start is fitted to. More add nothing (benchmarks/fit.py)."""


@dataclass(frozen=True)
class LearnedOptions(MethodOptions):
    """Options of ``learned``.

    Attributes:
        calls, teacher, memory: as in FitOptions.
        trajectories: images to learn from.
        iterations: gradient steps.
        batch: images of one step.
        learning_rate: highest rate of Adam, in units of chain.py. It rises for ``warm_up`` steps, and falls to 0 along
            half a cosine.
        warm_up: steps until the highest rate.
        clip: largest norm of the gradient.
        average: decay of the moving average of the numbers, whose held-out images decide.
        loss: what is compared with the teacher's images.
        features: ``package.module:attribute`` of the network behind ``perceptual``. It takes images (B, C, H, W), and
            gives a tensor or several.
        recompute: what the backward pass recomputes. It changes speed and memory, not the result.
        training: file of the training. Training continues from an existing file. None keeps the training in memory.

    Raises:
        UsageError: a value out of range, or features without their loss.
    """

    calls: int = 10
    teacher: TeacherName = "converged"
    trajectories: int = 64
    memory: int | None = None
    iterations: int = 150
    batch: int = 16
    learning_rate: float = 1e-3
    warm_up: int = 10
    clip: float = 10.0
    average: float = 0.95
    loss: LossName = "log-mse"
    features: str | None = None
    recompute: Recompute = "auto"
    training: Path | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        _ = self.start  # checks calls, teacher, trajectories and memory
        for name, least in {"iterations": 0, "batch": 1, "warm_up": 0}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 <= self.average < 1:
            raise UsageError(f"average must be in [0, 1), got {self.average}")
        for name, known in {"loss": LossName, "recompute": Recompute}.items():
            if getattr(self, name) not in get_args(known):
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown: choose {', '.join(get_args(known))}")
        self._check_features()

    def _check_features(self) -> None:
        if (self.loss == "perceptual") != (self.features is not None):
            raise UsageError(
                "loss perceptual compares features of a network: give both loss perceptual and features "
                "package.module:attribute"
            )
        if self.features is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.features):
            raise UsageError(f"features {self.features!r} name no network: give package.module:attribute")

    @property
    def decides_ratio(self) -> bool:
        """Always true: the number of calls is given."""
        return True

    @property
    def start(self) -> FitOptions:
        """Options of the fit that the search starts from."""
        return FitOptions(self.calls, self.teacher, min(self.trajectories, _FITTED), self.memory)

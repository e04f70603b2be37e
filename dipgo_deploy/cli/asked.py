"""What `search` is asked for on its command line, and what of it is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipgo_deploy.core.disk import check_target
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from dipgo_deploy.cli.source import ModelSource
    from dipgo_deploy.core.contract import Guidance
    from dipgo_deploy.search.dipgo.threshold import Order
    from dipgo_deploy.search.options import SearchOptions

__all__ = ["Asked", "GradientAsked", "check_asked"]


@dataclass(frozen=True)
class GradientAsked:
    """What belongs to the method dipgo alone; None takes the preset's."""

    preset: str = "default"
    iterations: int | None = None
    polish: int | None = None
    order: Order = "bisection"
    pruner: Path | None = None
    from_pruner: Path | None = None


@dataclass(frozen=True)
class Asked:
    """One search as the command line asks for it."""

    source: ModelSource
    options: SearchOptions
    sampler: str | None
    steps: int | None
    guidance: Guidance | None
    granularity: str
    patterns: tuple[str, ...] | None
    seed: int | None
    images: int | None
    conditions: Path | None
    guidance_scale: float | None
    gradient: GradientAsked
    out: Path
    picture: Path | None
    limit_graphs: int | None


def check_asked(asked: Asked) -> None:
    """Refuse what cannot be done before anything is loaded."""
    from dipgo_deploy.search.options import RULES

    gradient = asked.gradient
    if asked.conditions and asked.options.method in RULES:
        raise UsageError(f"--conditions is for methods that run the model, found {asked.options.method}: leave it out")
    if gradient.from_pruner:
        _check_cut(asked)
    if asked.options.method != "dipgo":
        for name in ("preset", "iterations", "polish", "order", "pruner", "from_pruner"):
            if getattr(gradient, name) != getattr(GradientAsked(), name):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} belongs to method dipgo, found {asked.options.method}: leave it out")
    if gradient.pruner and gradient.from_pruner:
        raise UsageError("--pruner trains a pruner, --from-pruner uses a trained one: give one of them")
    pruner = gradient.from_pruner or gradient.pruner
    if asked.options.method == "dipgo" and (asked.out == pruner or (pruner is None and asked.out.suffix == ".pruner")):
        raise UsageError(f"{asked.out} would be the schedule and the pruner: give --out another name")
    if asked.picture is not None:
        if asked.picture.suffix not in (".png", ".svg"):
            raise UsageError(f"{asked.picture} ends in neither .png nor .svg: name a picture")
        check_target(asked.picture)


def _check_cut(asked: Asked) -> None:
    """What a trained pruner brings cannot be asked for beside it."""
    gradient, blank = asked.gradient, GradientAsked()
    given = {
        "conditions": asked.conditions is not None,
        "preset": gradient.preset != blank.preset,
        "iterations": gradient.iterations is not None,
        "seed": asked.seed is not None,
        "guidance-scale": asked.guidance_scale is not None,
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise UsageError(f"--{name} belongs to training, --from-pruner brings a trained pruner: leave one out")
    if asked.images is not None and not gradient.polish:
        raise UsageError("--images judge exchanges, and --from-pruner makes none: give --polish too, or leave it out")

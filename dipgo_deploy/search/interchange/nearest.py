"""How a writer finds out that its format cannot say a schedule, and says where."""

from __future__ import annotations

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.candidate import ComputeSets

__all__ = ["agreed_steps", "check_same"]


def agreed_steps(schedule: Schedule, computed: ComputeSets) -> int:
    """Number of steps before the first at which ``schedule`` computes something else than ``computed``."""
    differs = (step for step, row in enumerate(schedule.computed) if row != computed[step])
    return next(differs, schedule.steps)


def check_same(schedule: Schedule, nearest: ComputeSets, name: str) -> None:
    """InputError, naming the first step and block that differ, unless ``schedule`` computes just ``nearest``.

    ``name`` says what of the format ``nearest`` is.
    """
    step = agreed_steps(schedule, nearest)
    if step == schedule.steps:
        return
    block = next(b for b in schedule.blocks if (b in schedule.computed[step]) != (b in nearest[step]))
    own, other = ("computes", "reuses") if block in schedule.computed[step] else ("reuses", "computes")
    raise InputError(f"step {step} {own} {block}, {name}, the nearest, {other} it: write it in another format")

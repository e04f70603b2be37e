"""Rung: one comparison of a verification, with both deviations, their tolerances and which of the two broke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dipgo_deploy.verify.deviation import Deviation

__all__ = ["Rung", "make_rung"]


@dataclass(frozen=True)
class Rung:
    """One comparison of two ways to run the schedule.

    Attributes:
        name: the two ways.
        local: the worst value, where each call is fed with the reference's slots. If values are past their tolerance,
            the worst of these values. None where there is no such number.
        free: deviation of the image after the whole trajectory.
        first: the first value in order of execution past its tolerance. None if there is none.
        passed: whether both deviations lie within their tolerances.
        free_tolerance: the largest ``free`` that passes. The tolerance of ``local`` is ``local.tolerance``.
        past: which of the two deviations are past their tolerance.
    """

    name: str
    local: Deviation | None
    free: float
    first: Deviation | None
    passed: bool
    free_tolerance: float
    past: tuple[Literal["local", "free"], ...] = ()


def make_rung(name: str, free: float, free_tolerance: float, local: Sequence[Deviation] = ()) -> Rung:
    """Compare the deviations of a rung with their tolerances. A deviation that is NaN does not pass.

    Args:
        name: the two ways.
        free: deviation of the image.
        free_tolerance: the largest ``free`` that passes.
        local: deviations with tolerances, in order of execution.

    Returns:
        The rung.
    """
    beyond = [deviation for deviation in local if not deviation.relative <= (deviation.tolerance or 0.0)]
    worst = max(beyond or local, key=lambda deviation: deviation.relative, default=None)
    past: list[Literal["local", "free"]] = ["local"] if beyond else []
    if not free <= free_tolerance:
        past.append("free")
    return Rung(name, worst, free, beyond[0] if beyond else None, not past, free_tolerance, tuple(past))

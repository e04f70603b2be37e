"""Options of the closed-form fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.method_options import MethodOptions

__all__ = ["WHOLE_HISTORY", "FitOptions", "TeacherName"]

TeacherName = Literal["full", "converged"]
"""``full``: the run of the contract's own sampler. ``converged``: as many calls as it takes to be exact."""

WHOLE_HISTORY = 10
"""With at most this many calls, a combination reads all outputs so far."""

_RECENT = 3


@dataclass(frozen=True)
class FitOptions(MethodOptions):
    """Options of ``fit``.

    Attributes:
        calls: network calls of the learned sampler.
        teacher: the run that the sampler is fitted to.
        trajectories: trajectories that coefficients are fitted to. ``SearchOptions.images`` more are held out.
        memory: outputs that a combination reads. None is all of them for at most 10 calls, and else the last 3.
        sweeps: rounds of the search over times, 0 for the best spacing of a plain sampler.
        ridge: weight that keeps coefficients small, as a share of each regressor's squared norm.

    Raises:
        UsageError: a value out of range.
    """

    calls: int = 10
    teacher: TeacherName = "converged"
    trajectories: int = 8
    memory: int | None = None
    sweeps: int = 3
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        """Check every field."""
        for name, least in {"calls": 1, "trajectories": 1, "memory": 1, "sweeps": 0, "ridge": 0.0}.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UsageError(f"{name} must be at least {least:g}, got {value}")
        if self.teacher not in get_args(TeacherName):
            raise UsageError(f"teacher {self.teacher!r} is unknown: choose {' or '.join(get_args(TeacherName))}")

    @property
    def decides_ratio(self) -> bool:
        """Always true: the number of calls is given."""
        return True

    @property
    def history(self) -> int:
        """The most outputs that a combination reads."""
        if self.memory is not None:
            return min(self.memory, self.calls)
        return self.calls if self.calls <= WHOLE_HISTORY else _RECENT

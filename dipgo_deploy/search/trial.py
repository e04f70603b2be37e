"""What a search that runs the model tells while it works."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from dipgo_deploy.search.calibration import Judge
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.options import SearchOptions

__all__ = ["JudgedMethod", "Search", "Trial"]


@dataclass(frozen=True)
class Trial:
    """``done`` of ``total`` parts of a stage, the best score yet (dB; None before the first), trajectories spent."""

    stage: str
    done: float
    total: float
    best_db: float | None
    spent: float

    def __str__(self) -> str:
        best = "" if self.best_db is None else f", best {self.best_db:.2f} dB"
        return f"{self.stage}: {self.done:.0f} of {self.total:.0f}{best}, {self.spent:.0f} trajectories"


Search = Generator[Trial, None, Candidate]
"""A search under way: it yields trials and returns what it proposes."""

JudgedMethod = Callable[[Judge, SearchOptions], Search]
"""A method that judges schedules by images."""

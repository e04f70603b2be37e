"""Progress of long work: a generator that yields its progress and returns its result."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

__all__ = ["Progress", "Work", "finish", "with_overall"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Progress:
    """A state of long work.

    Attributes:
        stage: name of the current stage.
        done, total: finished parts and all parts, in a unit of the stage such as images, rounds or trajectories.
        text: a detail to show, such as a loss.
        overall: finished share of all stages together, from 0 to 1. None if the work cannot tell.
    """

    stage: str
    done: float
    total: float
    text: str = ""
    overall: float | None = None

    @property
    def share(self) -> float:
        """The finished share of the stage, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 1.0

    def __str__(self) -> str:
        counts = f"{self.stage}: {self.done:.0f} of {self.total:.0f}"
        return f"{counts}, {self.text}" if self.text else counts


Work = Generator[Progress, None, Result]
"""Long work as a generator. The work starts at the first iteration, and the return value is the result."""


def finish(work: Work[Result], show: Callable[[Progress], object] | None = None) -> Result:
    """Run ``work`` to its end.

    Args:
        work: a generator that yields Progress and returns its result.
        show: called with every Progress, for example to update a progress bar.

    Returns:
        The return value of ``work``.
    """
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        if show is not None:
            show(progress)


def with_overall(work: Work[Result], sizes: Mapping[str, float]) -> Work[Result]:
    """Add the share of all stages to every progress of ``work``.

    Args:
        work: runs the stages one after another.
        sizes: expected duration of each stage by name, in any unit. The work may correct the sizes of stages that have
            not ended, and a stage without a size counts as instant.

    Returns:
        A generator of the same progress with ``overall``, which never decreases.
    """
    share = 0.0
    shares: dict[str, float] = {}
    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        shares[progress.stage] = progress.share
        done = sum(share_of_stage * sizes.get(stage, 0.0) for stage, share_of_stage in shares.items())
        share = max(share, min(1.0, done / max(sum(sizes.values()), 1e-12)))
        yield replace(progress, overall=share)

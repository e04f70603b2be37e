"""How long the stages of a bench take in proportion to each other, so that a progress bar covers the whole bench.

The unit is one image through one call of the full network. A schedule's call counts as its share of the full MACs.
The plain samplers are not known before the pilot has timed the schedules. Until then their number is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.core.program import Program

__all__ = ["DRAWING", "PILOT", "PILOT_ROUNDS", "REFERENCES", "TIMING", "TUNING", "StageSizes"]

REFERENCES, PILOT, TUNING, TIMING, DRAWING = (
    "reference images", "pilot timing", "tuning plain samplers", "timing", "drawing images",
)  # fmt: skip
"""Names of the stages, in this order."""

PILOT_ROUNDS = 3
"""Rounds of the pilot, which only has to distinguish latencies that differ by 10 %."""

_VARIANTS = 19
"""Variants of all plain samplers at one number of steps: 3 of DDIM and 8 of each other sampler."""

_WINNERS = 4.5
"""Plain samplers that remain after the tuning, at one number of steps: one or two of each."""


@dataclass(frozen=True)
class StageSizes:
    """The expected duration of every stage in ``sizes``, which grows more exact as the bench runs.

    Attributes:
        options: sizes of the bench.
        full: program of the full run.
        sizes: image calls by stage.
    """

    options: BenchOptions
    full: Program
    sizes: dict[str, float] = field(default_factory=dict)

    def start(self, schedules: Iterable[Program], steps: Sequence[int], converged_calls: int) -> None:
        """Estimate all stages.

        Args:
            schedules: programs of the schedules.
            steps: expected numbers of steps of the plain samplers.
            converged_calls: network calls of the converged run, 0 without a converged run.
        """
        options, calls = self.options, self._calls(schedules)
        held_out = options.tuning_images
        self.sizes[REFERENCES] = self._images(held_out) * self.full.nfe
        if converged_calls:
            self.sizes[REFERENCES] += self._images(options.converged_images + held_out) * converged_calls
        self.sizes[PILOT] = self._rounds(PILOT_ROUNDS, calls)
        self.tune(steps)
        # DDIM on a schedule's own timesteps takes about as long as the schedule.
        self._measure(2 * calls + _WINNERS * sum(steps))

    def tune(self, steps: Sequence[int]) -> None:
        """Set the stage of tuning, when the numbers of steps of the plain samplers are known."""
        self.sizes[TUNING] = self._images(self.options.tuning_images) * _VARIANTS * sum(steps)

    def measure(self, contenders: Iterable[Program]) -> None:
        """Set the last stages, when the programs of all contenders except the full run are known."""
        self._measure(self._calls(contenders))

    def _measure(self, calls: float) -> None:
        self.sizes[TIMING] = self._rounds(self.options.repeats, calls)
        self.sizes[DRAWING] = self._images(self.options.images) * (self.full.nfe + calls)

    def _calls(self, programs: Iterable[Program]) -> float:
        """Calls of programs together, in calls of the full network."""
        return sum(self.full.nfe * program.macs.full / self.full.macs.full for program in programs)

    def _rounds(self, rounds: int, calls: float) -> float:
        """One round to warm up, then ``rounds`` rounds in which the full run is timed twice."""
        return self.options.batch * ((rounds + 1) * (self.full.nfe + calls) + rounds * self.full.nfe)

    def _images(self, count: int) -> int:
        """Images that are drawn for ``count`` images: the last batch is filled up."""
        return -(-count // self.options.batch) * self.options.batch

"""Which step of the schedule a call is, from nothing but its timestep and whether its conditioning is the run's.

1. A run begins at step 0, or later where its first timestep is a later one's (image-to-image).
2. Within a run the timesteps must follow the schedule's. Another timestep under the same conditioning begins a new run
   only where time goes back up; under other conditioning anywhere but at the very next step, for there it cannot be
   told whether the run goes on. Everything else is refused: another sampler or number of steps.
3. After the last step, a reset or a refusal the next call begins a run.
4. Where a timestep occurs twice (PNDM, Heun) a late start is ambiguous until the second call, which then may ask for
   the first one to be replayed from the other place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.pipeline.calls import RefusedCall

__all__ = ["CallTracker", "Place"]


@dataclass(frozen=True)
class Place:
    """Step ``step`` of a run that began at ``start``; ``replay``: the call before belongs to this start too."""

    start: int
    step: int
    replay: bool = False


class CallTracker:
    """Follows the calls of one trajectory after another."""

    def __init__(self, sampler: SamplerSpec) -> None:
        self._sampler, self._times = sampler, sampler.timesteps
        self._place: Place | None = None

    @property
    def is_running(self) -> bool:
        """Whether a run has begun and is not at its end."""
        return self._place is not None and self._place.step + 1 < len(self._times)

    def reset(self) -> None:
        """Forget the run: the next call begins one."""
        self._place = None

    def follow(self, timestep: float, tolerance: float, same: bool) -> Place:
        """The place of a call; ``same`` says whether its conditioning is that of the run.

        Raises RefusedCall, and forgets the run, where the call does not fit.
        """
        try:
            self._place = self._next_place(timestep, tolerance, same)
        except RefusedCall:
            self.reset()
            raise
        return self._place

    def _next_place(self, timestep: float, tolerance: float, same: bool) -> Place:
        starts = self._steps_at(timestep, tolerance)
        if not self.is_running:
            return Place(self._first(starts, timestep), starts[0])
        assert self._place is not None
        start, step = self._place.start, self._place.step + 1
        expected = abs(self._times[step] - timestep) <= tolerance
        if expected and same:
            return Place(start, step)
        if same and (other := self._other_start(timestep, tolerance)) is not None:
            return Place(other, other + 1, replay=True)
        is_new = 0 in starts or (timestep > self._times[step - 1] + tolerance if same else not expected)
        if starts and is_new:
            return Place(starts[0], starts[0])
        raise RefusedCall(self._text(timestep, step, same))

    def _first(self, starts: Sequence[int], timestep: float) -> int:
        if not starts:
            raise RefusedCall(self._text(timestep, 0, True))
        return starts[0]

    def _steps_at(self, timestep: float, tolerance: float) -> list[int]:
        """The steps of the nearest timestep, if it is near enough."""
        nearest = min(self._times, key=lambda t: abs(t - timestep))
        if abs(nearest - timestep) > tolerance:
            return []
        return [step for step, t in enumerate(self._times) if t == nearest]

    def _other_start(self, timestep: float, tolerance: float) -> int | None:
        """At the second call of a run: a later step of the same timestep as its first, which this call would follow."""
        assert self._place is not None
        start = self._place.start
        if start == 0 or self._place.step != start:
            return None
        others = [step for step in range(start + 1, len(self._times) - 1) if self._times[step] == self._times[start]]
        return next((step for step in others if abs(self._times[step + 1] - timestep) <= tolerance), None)

    def _text(self, timestep: float, step: int, same: bool) -> str:
        name, steps = self._sampler.class_name, self._sampler.steps
        if not same:
            return (
                f"the conditioning changed at step {step} of {len(self._times)}: keep it for a whole run, call reset() "
                "between runs, and give calls of their own (guidance by two calls a step) a cache_context each"
            )
        return (
            f"the bundle is made for {name} with {steps} steps, whose call {step} is at timestep "
            f"{self._times[step]:g}, found {timestep:g}: use that scheduler with num_inference_steps={steps}"
        )

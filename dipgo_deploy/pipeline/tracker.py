"""Find the step of the schedule that a call belongs to, from its timestep and from changes of conditioning.

1. A run starts at step 0, or later if the first timestep is that of a later step (image-to-image).
2. Within a run the timesteps must follow the schedule. Another timestep with the same conditioning starts a new run
   only if time goes back up. Changed conditioning starts a new run at any step except the next one, because there the
   run could also continue. Every other timestep is refused: the sampler or the number of steps differs.
3. The call after the last step, after a reset or after a refusal starts a run.
4. Some samplers have a timestep twice (PNDM, Heun, rounded Karras sigmas). A pipeline passes views of the scheduler's
   timesteps, and the place of the view tells the step. For a bare number a late start there is ambiguous until the
   second call, which may need the first call to be replayed at the other step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.pipeline.calls import RefusedCall

__all__ = ["CallTracker", "Place"]


@dataclass(frozen=True)
class Place:
    """The place of a call in the schedule.

    Attributes:
        start: the step at which the run started.
        step: the step of the call.
        replay: whether the call before must be made again as step ``start``.
    """

    start: int
    step: int
    replay: bool = False


class CallTracker:
    """Follows the calls of one trajectory after another.

    Args:
        sampler: the sampler whose timesteps the calls must follow.
    """

    def __init__(self, sampler: SamplerSpec) -> None:
        self._sampler, self._times = sampler, sampler.timesteps
        self._place: Place | None = None

    @property
    def is_running(self) -> bool:
        """Whether a run has started and has steps left."""
        return self._place is not None and self._place.step + 1 < len(self._times)

    def reset(self) -> None:
        """Forget the run. The next call starts a new one."""
        self._place = None

    @property
    def first_time(self) -> float:
        """The timestep of a whole run's first call."""
        return self._times[0]

    @property
    def next_step(self) -> int:
        """The step that a running run expects, 0 if there is no run."""
        return self._place.step + 1 if self._place is not None and self.is_running else 0

    def expects(self, timestep: float, tolerance: float) -> bool:
        """Whether a timestep is that of the next step."""
        return abs(self._times[self.next_step] - timestep) <= tolerance

    def begins(self, timestep: float, tolerance: float) -> bool:
        """Whether a timestep may begin a whole run."""
        return abs(self._times[0] - timestep) <= tolerance

    def follow(self, timestep: float, tolerance: float, same: bool, clock: torch.Tensor | None = None) -> Place:
        """Find the place of a call.

        Args:
            timestep: of the call.
            tolerance: how far the timestep may be from the schedule's.
            same: whether the conditioning is that of the run.
            clock: the timestep as the caller passed it.

        Returns:
            The place.

        Raises:
            RefusedCall: the call does not fit the schedule. The run is forgotten.
        """
        try:
            place = self._place_in(clock, tolerance)
            self._place = place or self._next_place(timestep, tolerance, same)
        except RefusedCall:
            self.reset()
            raise
        return self._place

    def _place_in(self, clock: torch.Tensor | None, tolerance: float) -> Place | None:
        """The place of a new run, if ``clock`` is a view of the schedule's timesteps that shows a new run."""
        step = None if clock is None else _step_of(clock, self._times, tolerance)
        goes_back = self._place is None or step == 0 or (step is not None and step < self._place.step)
        return Place(step, step) if step is not None and (goes_back or not self.is_running) else None

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
        raise RefusedCall(self._refusal(timestep, step, same))

    def _first(self, starts: Sequence[int], timestep: float) -> int:
        if not starts:
            raise RefusedCall(self._refusal(timestep, 0, True))
        return starts[0]

    def _steps_at(self, timestep: float, tolerance: float) -> list[int]:
        """The steps with the nearest timestep, if it is within the tolerance."""
        nearest = min(self._times, key=lambda t: abs(t - timestep))
        if not abs(nearest - timestep) <= tolerance:
            return []
        return [step for step, t in enumerate(self._times) if t == nearest]

    def _other_start(self, timestep: float, tolerance: float) -> int | None:
        """At the second call of a run, a later start with the same timestep that this call would continue."""
        assert self._place is not None
        start = self._place.start
        if start == 0 or self._place.step != start:
            return None
        others = [step for step in range(start + 1, len(self._times) - 1) if self._times[step] == self._times[start]]
        return next((step for step in others if abs(self._times[step + 1] - timestep) <= tolerance), None)

    def _refusal(self, timestep: float, step: int, same: bool) -> str:
        name, steps = self._sampler.class_name, self._sampler.steps
        if not same:
            return (
                f"the conditioning changed at step {step} of {len(self._times)}: keep it for a whole run, call reset() "
                "between runs, and give each call its own cache_context where a pipeline makes two calls per step"
            )
        return (
            f"the bundle is made for {name} with {steps} steps, whose call {step} is at timestep "
            f"{self._times[step]:g}, got {timestep:g}: use that scheduler with num_inference_steps={steps}"
        )


def _step_of(clock: torch.Tensor, times: Sequence[float], tolerance: float) -> int | None:
    """The index of a timestep in the tensor of all timesteps that it is a view of. None if there is no such tensor."""
    storage = clock.untyped_storage()
    is_one = clock.numel() > 0 and all(
        stride == 0 or size == 1 for size, stride in zip(clock.shape, clock.stride(), strict=True)
    )
    if not is_one or storage.nbytes() != len(times) * clock.element_size():
        return None
    values = torch.empty(0, dtype=clock.dtype, device=clock.device).set_(storage, 0, (len(times),)).tolist()
    is_schedule = all(abs(value - time) <= tolerance for value, time in zip(values, times, strict=True))
    return int(clock.storage_offset()) if is_schedule else None

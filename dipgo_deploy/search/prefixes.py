"""Runs of schedules that begin where an earlier run still agrees with them.

A search tries many schedules that differ from one another late: what they share need not be computed again. Of one run,
the *base*, the states after some of its calls are kept; a schedule starts from the last of them before it differs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.supernet.rollout import Rollout

__all__ = ["Prefixes"]


class Prefixes:
    """Runs of hold schedules, and the states of the base.

    Args:
        begin: makes a rollout that stands before step 0.
        states: most states kept of one run, 0 for none. Each holds what its call computed of every block.
    """

    def __init__(self, begin: Callable[[Schedule], Rollout], states: int) -> None:
        self._begin, self._states = begin, states
        self._base: list[Rollout] = []
        self._last: list[Rollout] = []

    def settle(self) -> None:
        """Make the last run the base: what follows will mostly agree with it."""
        self._base = self._last

    def image(self, schedule: Schedule) -> tuple[torch.Tensor, int]:
        """The last latent (B, C, H, W) under ``schedule``, bit for bit that of a whole run, and the first step run."""
        agreeing = [state for state in self._base if _agree(state, schedule)]
        rollout = agreeing[-1].fork(schedule) if agreeing else self._begin(schedule)
        first, self._last = rollout.step, agreeing
        calls = [step for step, computed in enumerate(schedule.computed[:-1]) if any(computed)]
        kept = set(calls[:: -(-len(calls) // self._states)]) if self._states else set[int]()
        while True:
            step = rollout.advance()
            if rollout.step == schedule.steps:
                return step.latent, first
            if step.step in kept:
                self._last = [*self._last, rollout.fork(schedule)]


def _agree(state: Rollout, schedule: Schedule) -> bool:
    return state.schedule.computed[: state.step] == schedule.computed[: state.step]

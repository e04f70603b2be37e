"""The search over times: one time after another is moved, and the coefficients are fitted again at each try.

Each round halves the moves. A round first moves every time together with the state that belongs to it, then only what
the network is told (decoupled times). Late times come first, because their trials share most of their calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.search.fit.student import Student, Times, Trial

__all__ = ["improve_times"]

_FIRST_MOVE = 0.4
"""Largest move, as a share of the distance to the neighbouring time."""

_CLOSEST = 0.01
"""Times of neighbouring calls differ by more than this share of the teacher's range over the number of calls."""


def improve_times(student: Student, start: Trial, sweeps: int) -> Work[Trial]:
    """Move times as long as that improves the held-out images.

    Args:
        student: fits chains.
        start: where the search begins.
        sweeps: number of rounds.

    Returns:
        A generator of Progress whose result is the best trial.
    """
    best, calls = start, len(start.times.network)
    total, done = sweeps * 2 * calls, 0
    for sweep in range(sweeps):
        for is_decoupled in (False, True):
            for call in reversed(range(calls)):
                for times in _moves(student, best.times, call, _FIRST_MOVE / 2**sweep, is_decoupled):
                    trial = student.fit(times, best)
                    if trial.score > best.score:
                        best = trial
                        break
                done += 1
                yield Progress("times", done, total, f"{best.score:.2f} dB")
    return best


def _moves(student: Student, times: Times, call: int, share: float, is_decoupled: bool) -> Iterator[Times]:
    """The time of a call moved towards each of its neighbours. Moves that break the order are left out."""
    earliest, latest = student.teacher.times[0], student.teacher.times[-1]
    moved = times.network if is_decoupled else times.states
    before = moved[call - 1] if call else earliest
    after = moved[call + 1] if call + 1 < len(moved) else min(latest, moved[call])
    if is_decoupled:
        share /= 2
    for distance in (before - moved[call], after - moved[call]):
        network = _shifted(times.network, call, share * distance)
        states = times.states if is_decoupled else _shifted(times.states, call, share * distance)
        changed = Times(states, network)
        if changed != times and all(_is_ordered(part, earliest, latest) for part in (states, network)):
            yield changed


def _shifted(times: tuple[float, ...], call: int, by: float) -> tuple[float, ...]:
    # Whole thousandths are the same number in every file and in float32 up to a rounding that no network sees.
    return (*times[:call], round(times[call] + by, 3), *times[call + 1 :])


def _is_ordered(times: tuple[float, ...], earliest: float, latest: float) -> bool:
    closest = _CLOSEST * (earliest - latest) / len(times)
    return times[0] <= earliest and all(first - second > closest for first, second in pairwise(times))

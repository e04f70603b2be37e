"""Timing that is fair on a busy machine: contenders take turns, and one of them runs twice to show the noise.

Every round runs all contenders once, the base twice, in an order shuffled with a fixed seed. Ratios are taken within a
round, where both sides met the same machine, and their median over rounds is reported.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from dipgo_deploy.bench.quality import percentiles
from dipgo_deploy.runtime.clock import Clock, HostClock

__all__ = ["BoundCall", "Stopwatch", "time_rounds"]

_AGAIN = " (again)"

BoundCall = Callable[[], object]
"""What is timed."""


@dataclass
class Stopwatch:
    """Durations in ms by contender, round after round; ``base`` is the contender that is timed twice a round."""

    base: str
    series: dict[str, list[float]] = field(default_factory=dict)

    def add(self, round_ms: Mapping[str, float]) -> None:
        """Take in one round of `time_rounds`."""
        for name, ms in round_ms.items():
            self.series.setdefault(name, []).append(ms)

    def latency_ms(self, name: str) -> dict[str, float]:
        """Percentiles p50 and p90; both series of the base count."""
        return percentiles([*self.series[name], *self.series.get(name + _AGAIN, [])], 50, 90)

    def speedup(self, name: str, around_ms: float = 0.0) -> float:
        """Base over contender: the median of the rounds' ratios, the base being the mean of its two runs.

        ``around_ms`` is what both sides spend besides.
        """
        if name == self.base:
            return 1.0
        bases = [(a + b) / 2 for a, b in zip(self.series[self.base], self.series[self.base + _AGAIN], strict=True)]
        pairs = zip(bases, self.series[name], strict=True)
        return statistics.median((base + around_ms) / (own + around_ms) for base, own in pairs)

    @property
    def aa_ratio(self) -> float:
        """The base over itself, median of the rounds: what differs from 1 is noise."""
        pairs = zip(self.series[self.base], self.series[self.base + _AGAIN], strict=True)
        return statistics.median(first / second for first, second in pairs)


def time_rounds(
    acts: Mapping[str, BoundCall], base: str, rounds: int, seed: int = 0, clock: Clock | None = None
) -> Iterator[dict[str, float]]:
    """Run every act once to warm up, then ``rounds`` rounds; yields the durations in ms of each.

    Args:
        acts: what to time, by name.
        base: the one that runs twice a round; its second duration has `` (again)`` behind its name.
        rounds: how many.
        seed: of the order within each round.
        clock: the host's if not given; CUDA events where acts are only queued.
    """
    for act in acts.values():
        act()
    clock = clock or HostClock()
    entries = [*acts.items(), (base + _AGAIN, acts[base])]
    shuffle = random.Random(seed).shuffle
    for _ in range(rounds):
        order = list(entries)
        shuffle(order)
        with _without_gc():
            measured = {name: _duration_ms(act, clock) for name, act in order}
        yield measured


def _duration_ms(act: BoundCall, clock: Clock) -> float:
    start = clock.mark()
    act()
    return clock.elapsed_ms(start, clock.mark())


@contextmanager
def _without_gc() -> Iterator[None]:
    """No garbage collection inside."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

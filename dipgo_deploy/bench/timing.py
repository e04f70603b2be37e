"""Running contenders: drawing images, and timing that is fair on a busy machine.

1. Contenders take turns. Every round runs all contenders once, and the base twice, in an order shuffled with a seed.
2. Ratios are taken within a round, so both sides ran under the same load. Medians over the rounds are reported.
3. The base over itself (A/A ratio) shows the noise floor.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from dipgo_deploy.bench.contenders import Contender
from dipgo_deploy.bundle import Bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.metrics import percentiles
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.runtime.clock import Clock, HostClock, clock_for
from dipgo_deploy.runtime.generate import Inputs, generate_batches, run_inputs
from dipgo_deploy.runtime.session import Session

__all__ = ["Stage", "Stopwatch", "draw_images", "enqueue", "labels_of", "time_contenders", "time_rounds"]

_AGAIN = " (again)"


@dataclass
class Stage:
    """A stage of a bench whose parts are done by several generators. ``done`` of ``total`` parts are finished."""

    name: str
    total: float
    done: float = 0.0

    def advance(self, parts: float, text: str = "") -> Progress:
        """Count ``parts`` more as done.

        Args:
            parts: in the stage's unit, such as network calls.
            text: description of the current work.

        Returns:
            The progress to yield.
        """
        self.done += parts
        return Progress(self.name, self.done, self.total, text)


def labels_of(bundle: Bundle, seeds: Sequence[int]) -> list[int]:
    """The class of each seed's image. Classes take turns by seed, so a seed gives the same image in every batch."""
    return [seed % (bundle.model.num_classes or 1) for seed in seeds]


def draw_images(bundle: Bundle, session: Session, seeds: Sequence[int], stage: Stage, text: str) -> Work[np.ndarray]:
    """Draw one image per seed.

    Args:
        bundle: gives the conditioning.
        session: a session of any program of the bundle's contract.
        seeds: seeds of the noise.
        stage: the stage that this belongs to, in network calls per image.
        text: name of the contender that draws.

    Returns:
        Images (N, C, H, W).
    """
    parts: list[np.ndarray] = []
    for part in generate_batches(session, bundle, seeds, labels_of(bundle, seeds)):
        parts.append(part)
        yield stage.advance(session.program.nfe * len(part), text)
    return np.concatenate(parts)


@dataclass
class Stopwatch:
    """Durations in ms by contender, round after round. The contender ``base`` is timed twice per round."""

    base: str
    series: dict[str, list[float]] = field(default_factory=dict)

    def add(self, round_ms: Mapping[str, float]) -> None:
        """Add one round of `time_rounds`."""
        for name, ms in round_ms.items():
            self.series.setdefault(name, []).append(ms)

    def latency_ms(self, name: str) -> dict[str, float]:
        """Percentiles p50 and p90. For the base, both series count."""
        return percentiles([*self.series[name], *self.series.get(name + _AGAIN, [])], 50, 90)

    def speedup(self, name: str, overhead_ms: float = 0.0) -> float:
        """Base over contender: the median of the rounds' ratios.

        Args:
            name: name of the contender.
            overhead_ms: time that a pipeline adds to either side.

        Returns:
            The speed-up, with the mean of the base's two runs as the base. Exactly 1 for the base itself.
        """
        if name == self.base:
            return 1.0
        bases = [(a + b) / 2 for a, b in zip(self.series[self.base], self.series[self.base + _AGAIN], strict=True)]
        pairs = zip(bases, self.series[name], strict=True)
        return statistics.median((base + overhead_ms) / (own + overhead_ms) for base, own in pairs)

    @property
    def aa_ratio(self) -> float:
        """The base over itself, median of the rounds. The distance from 1 is noise."""
        pairs = zip(self.series[self.base], self.series[self.base + _AGAIN], strict=True)
        return statistics.median(first / second for first, second in pairs)


def time_contenders(
    stage: str, bundle: Bundle, contenders: Sequence[Contender], rounds: int, seed: int, device: str = "cpu"
) -> Work[Stopwatch]:
    """Time contenders on one batch.

    Args:
        stage: name of the stage, for the progress.
        bundle: gives noise and conditioning.
        contenders: contenders to time. The first contender is the base, which runs twice per round.
        rounds: number of rounds.
        seed: seed of the order within each round.
        device: on ``cuda``, durations are those of CUDA events and include waiting for the host.

    Returns:
        The durations.

    Raises:
        UsageError: two contenders have the same name.
    """
    inputs = run_inputs(bundle.model, bundle.manifest.contract, range(contenders[0].session.batch))
    runs = {contender.name: partial(enqueue, contender.session, inputs) for contender in contenders}
    if len(runs) < len(contenders):
        twice = next(name for name, count in Counter(c.name for c in contenders).items() if count > 1)
        raise UsageError(f"rows need distinct names, but two are called {twice!r}: rename the folder or file")
    watch = Stopwatch(contenders[0].name)
    for done, round_ms in enumerate(time_rounds(runs, watch.base, rounds, seed, clock_for(device)), 1):
        watch.add(round_ms)
        yield Progress(stage, done, rounds)
    return watch


def enqueue(session: Session, inputs: Inputs) -> None:
    """Run a session without its last step, the copy of the images to the host."""
    session.begin(*inputs, 0)
    session.go()


def time_rounds(
    runs: Mapping[str, Callable[[], object]], base: str, rounds: int, seed: int = 0, clock: Clock | None = None
) -> Iterator[dict[str, float]]:
    """Call everything once to warm up, then time ``rounds`` rounds.

    Args:
        runs: functions to time, by name.
        base: the name that runs twice per round. The second duration has `` (again)`` after its name.
        rounds: number of rounds.
        seed: seed of the order within each round.
        clock: the host's clock by default. Use CUDA events for calls that only enqueue work.

    Yields:
        The durations of each round in ms.
    """
    for run in runs.values():
        run()
    clock = clock or HostClock()
    entries = [*runs.items(), (base + _AGAIN, runs[base])]
    shuffle = random.Random(seed).shuffle
    for _ in range(rounds):
        order = list(entries)
        shuffle(order)
        with _without_gc():
            round_ms = {name: _duration_ms(run, clock) for name, run in order}
        yield round_ms


def _duration_ms(run: Callable[[], object], clock: Clock) -> float:
    start = clock.mark()
    run()
    return clock.elapsed_ms(start, clock.mark())


@contextmanager
def _without_gc() -> Iterator[None]:
    """Disable garbage collection, whose pauses would count as one contender's time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

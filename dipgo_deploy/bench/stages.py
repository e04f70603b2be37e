"""The long work of a bench, drawing and timing, as generators of their progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dipgo_deploy.bench.contenders import Contender
from dipgo_deploy.bench.timing import BoundCall, Stopwatch, time_rounds
from dipgo_deploy.bundle import Bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.runtime.clock import clock_for
from dipgo_deploy.runtime.generate import Inputs, generate_batches, run_inputs
from dipgo_deploy.runtime.session import Session

__all__ = ["Progress", "drawn", "labels_of", "queued", "timed"]


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` parts of a stage."""

    stage: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.stage}: {self.done} of {self.total}"


def labels_of(bundle: Bundle, seeds: Sequence[int]) -> list[int]:
    """Classes in turn, so that an image of a seed is the same wherever it is drawn."""
    return [seed % (bundle.model.num_classes or 1) for seed in seeds]


def drawn(stage: str, bundle: Bundle, session: Session, seeds: Sequence[int]) -> Generator[Progress, None, np.ndarray]:
    """Images (N, C, H, W) of ``seeds``."""
    parts: list[np.ndarray] = []
    for part in generate_batches(session, bundle, seeds, labels_of(bundle, seeds)):
        parts.append(part)
        yield Progress(stage, sum(map(len, parts)), len(seeds))
    return np.concatenate(parts)


def timed(
    stage: str, bundle: Bundle, contenders: Sequence[Contender], rounds: int, seed: int, device: str = "cpu"
) -> Generator[Progress, None, Stopwatch]:
    """Durations of ``contenders``, all on one batch; the first is the base that runs twice a round.

    On a GPU they are those of its own clock, CUDA events around the calls: what a run waits for its host is in them.

    Raises UsageError where two have one name.
    """
    inputs = run_inputs(bundle.model, bundle.manifest.contract, range(contenders[0].session.batch))
    acts: Mapping[str, BoundCall] = {c.name: partial(queued, c.session, inputs) for c in contenders}
    if len(acts) < len(contenders):
        twice = next(name for name, count in Counter(c.name for c in contenders).items() if count > 1)
        raise UsageError(f"two rows are called {twice!r}: rename the folder or file of that name")
    watch = Stopwatch(contenders[0].name)
    for done, measured in enumerate(time_rounds(acts, watch.base, rounds, seed, clock_for(device)), 1):
        watch.add(measured)
        yield Progress(stage, done, rounds)
    return watch


def queued(session: Session, inputs: Inputs) -> None:
    """A run without its last step, the copy of the images to the host."""
    session.begin(*inputs, 0)
    session.go()

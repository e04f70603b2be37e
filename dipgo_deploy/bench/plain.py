"""Plain samplers beside schedules: with how many steps, in which variant, and on which timesteps."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dipgo_deploy.bench.contenders import Contender, FullNetwork
from dipgo_deploy.bench.entries import Entry
from dipgo_deploy.bench.stages import Progress, labels_of
from dipgo_deploy.bench.variants import PLAIN_SAMPLERS, Variant, variants
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.models.time_grid import ddim_on_grid
from dipgo_deploy.runtime.fidelity import psnr_db
from dipgo_deploy.runtime.generate import generate_batches

__all__ = ["LeftOut", "on_grids", "plain_samplers", "steps_beside"]

_ALIKE = 0.1
"""Share by which two latencies must differ, for plain samplers at both to tell more than at one."""


@dataclass(frozen=True)
class LeftOut:
    """A row or part that a report lacks; as a string, what it is and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what} is left out: {self.why}"


def steps_beside(calls: Iterable[int], full_calls: int, speedups: Iterable[float]) -> list[int]:
    """Numbers of steps at which plain samplers stand beside schedules.

    All distinct numbers of ``calls`` that schedules make, below the ``full_calls`` of the full run; then, for each of
    their ``speedups`` over it, as many steps as take the same time, unless a number within 10 % is already there.
    """
    found = list(dict.fromkeys(count for count in calls if count < full_calls))
    for speedup in speedups:
        steps = max(1, min(round(full_calls / speedup), 2 * full_calls))
        if all(abs(steps - other) > _ALIKE * other for other in found):
            found.append(steps)
    return found


def plain_samplers(
    network: FullNetwork, steps: Sequence[int], seeds: Sequence[int], targets: Sequence[np.ndarray]
) -> Generator[Progress, None, list[Contender]]:
    """Every plain sampler at every number of ``steps``, in the variant that comes nearest to each of ``targets``.

    Targets are images (N, C, H, W) of ``seeds``, none of which is judged later. A variant may win for one target and
    lose for another by several dB, so each winner is a contender. A sampler that does not suit the model is left out.
    """
    found = []
    for count in steps:
        for name, title in PLAIN_SAMPLERS.items():
            choice = list(variants(name, count, network.scheduler_config))
            best = yield from _best(f"tuning {title}-{count}", network, choice, seeds, targets)
            found += [network.sampler(f"{title}-{count} {one.label}", one.spec, one.reading) for one in best]
    return found


def _best(
    stage: str, network: FullNetwork, choice: Sequence[Variant], seeds: Sequence[int], targets: Sequence[np.ndarray]
) -> Generator[Progress, None, list[Variant]]:
    """The variants with the best median PSNR to one of ``targets``, equal ones once; none of none."""
    scores = np.empty((len(choice), len(targets)))
    for done, variant in enumerate(choice):
        session = network.session(variant.spec, variant.reading)
        drawn = np.concatenate(list(generate_batches(session, network.bundle, seeds, labels_of(network.bundle, seeds))))
        images = np.nan_to_num(drawn, nan=1e6)
        scores[done] = [np.median(psnr_db(images, target)) for target in targets]
        yield Progress(stage, done + 1, len(choice))
    winners = scores.argmax(axis=0) if choice else []
    return [choice[winner] for winner in dict.fromkeys(winners)]


def on_grids(network: FullNetwork, entries: Sequence[Entry]) -> Iterator[Contender | LeftOut]:
    """Plain DDIM (eta 0) at exactly the timesteps at which each schedule computes the prediction; equal grids once.

    A schedule that computes it at every step has no grid of its own. Under DDIM and a model that predicts noise, the
    row is what holding the prediction amounts to, so whatever a schedule adds shows beside it.
    """
    seen = {network.contract.sampler.timesteps}
    for entry in entries:
        if entry.grid in seen:
            continue
        seen.add(entry.grid)
        name = f"DDIM-{len(entry.grid)} on {entry.name}'s grid"
        try:
            yield network.sampler(name, *ddim_on_grid(entry.grid, network.scheduler_config))
        except DipgoError as error:
            yield LeftOut(name, str(error))

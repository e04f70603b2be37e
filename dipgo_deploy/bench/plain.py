"""The plain samplers that a schedule has to beat: their numbers of steps, best variants and timesteps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dipgo_deploy.bench.contenders import Contender, FullNetwork
from dipgo_deploy.bench.entries import Entry
from dipgo_deploy.bench.report import LeftOut
from dipgo_deploy.bench.stage_sizes import TUNING
from dipgo_deploy.bench.timing import Stage, labels_of
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.metrics import psnr_db
from dipgo_deploy.core.progress import Work
from dipgo_deploy.models.full_run import full_run_of
from dipgo_deploy.models.sampler_variants import PLAIN_SAMPLERS, Variant, variants
from dipgo_deploy.models.time_grid import ddim_on_grid
from dipgo_deploy.runtime.generate import generate_batches

__all__ = ["comparable_steps", "on_time_grids", "plain_samplers"]

_ALIKE = 0.1
"""Latencies closer than this share count as equal, so plain samplers run at only one of the two."""

_NOT_A_NUMBER = 1e6
"""Replaces NaN in images of a diverged variant, so that the variant loses and all comparisons stay finite."""


def comparable_steps(calls: Iterable[int], full_calls: int, speedups: Iterable[float]) -> list[int]:
    """Numbers of steps at which plain samplers are compared with schedules.

    Args:
        calls: network calls of each schedule. All distinct numbers below ``full_calls`` are used.
        full_calls: network calls of the full run.
        speedups: of each schedule over the full run. For each speed-up, as many steps as take the same time are
            added, unless a number within 10 % is already there.

    Returns:
        Distinct numbers of steps.
    """
    steps = list(dict.fromkeys(count for count in calls if count < full_calls))
    for speedup in speedups:
        # A schedule may be slower than the full run. Twice the full run's steps bounds the time of the bench.
        same_time = max(1, min(round(full_calls / speedup), 2 * full_calls))
        if all(abs(same_time - other) > _ALIKE * other for other in steps):
            steps.append(same_time)
    return steps


def plain_samplers(
    network: FullNetwork, steps: Sequence[int], seeds: Sequence[int], targets: Sequence[np.ndarray]
) -> Work[list[Contender]]:
    """Tune every plain sampler at every number of steps.

    Args:
        network: the full network.
        steps: numbers of steps.
        seeds: seeds of held-out images, on which no contender is evaluated later.
        targets: images (N, C, H, W) of these seeds, such as those of the full run and of the converged run.

    Returns:
        For every sampler and number of steps, the variant closest to each target. A variant may win for one target
        and lose for another by several dB, so each winner is a contender. A sampler without variants is left out.
    """
    config = network.scheduler_config
    choices = {
        f"{title}-{count}": list(variants(name, count, config))
        for count in steps
        for name, title in PLAIN_SAMPLERS.items()
    }
    stage = Stage(TUNING, sum(v.spec.calls for choice in choices.values() for v in choice))
    contenders = []
    for title, choice in choices.items():
        best = yield from _best_variants(network, choice, seeds, targets, stage, title)
        contenders += [network.sampler(f"{title} {v.label}", v.spec, v.reading) for v in best]
    return contenders


def _best_variants(
    network: FullNetwork,
    choice: Sequence[Variant],
    seeds: Sequence[int],
    targets: Sequence[np.ndarray],
    stage: Stage,
    title: str,
) -> Work[list[Variant]]:
    """The distinct variants with the best median PSNR to one of ``targets``."""
    scores = np.empty((len(choice), len(targets)))
    for index, variant in enumerate(choice):
        session = network.session(variant.spec, variant.reading)
        batches = generate_batches(session, network.bundle, seeds, labels_of(network.bundle, seeds))
        images = np.nan_to_num(np.concatenate(list(batches)), nan=_NOT_A_NUMBER)
        scores[index] = [np.median(psnr_db(images, target)) for target in targets]
        yield stage.advance(variant.spec.calls, title)
    winners = scores.argmax(axis=0) if choice else []
    return [choice[winner] for winner in dict.fromkeys(winners)]


def on_time_grids(network: FullNetwork, entries: Sequence[Entry]) -> Iterator[Contender | LeftOut]:
    """Plain DDIM (eta 0) at exactly the timesteps at which each schedule computes the prediction.

    Under DDIM and a model that predicts noise, such a row is equivalent to holding the prediction. Comparison with it
    shows what a schedule adds.

    Args:
        network: the full network.
        entries: the schedules.

    Yields:
        One contender per distinct time grid, or the reason why DDIM does not run there. A schedule that computes the
        prediction at every step has the full run's grid and is skipped.
    """
    seen = {full_run_of(network.contract.sampler).timesteps}
    for entry in entries:
        if entry.time_grid in seen:
            continue
        seen.add(entry.time_grid)
        name = f"DDIM-{len(entry.time_grid)} on {entry.name}'s grid"
        try:
            yield network.sampler(name, *ddim_on_grid(entry.time_grid, network.scheduler_config))
        except DipgoError as error:
            yield LeftOut(name, str(error))

"""Candidate time grids of a student: the spacings of plain samplers, moved into the teacher's range of times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.models import sampler_spec

__all__ = ["time_grids"]

_SPACINGS: Mapping[str, Mapping[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "log-snr": {"use_lu_lambdas": True},
}
"""Names of spacings, and the options that make DPM++ space its times so."""


def time_grids(
    calls: int, scheduler_config: Mapping[str, Any], earliest: float, latest: float
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Names and times of every distinct grid.

    Args:
        calls: number of times.
        scheduler_config: config of the model's own scheduler. Spacings that its noise schedule refuses are left out.
        earliest: the teacher's first and greatest time.
        latest: the teacher's last time.

    Yields:
        Descending times between the two, each grid once. The first is evenly spaced.
    """
    seen = set()
    for name, times in _candidates(calls, scheduler_config, earliest, latest):
        grid = tuple(round(float(t), 3) for t in np.clip(times, latest, earliest))
        is_descending = all(later < earlier for earlier, later in pairwise(grid))
        if len(grid) == calls and is_descending and grid not in seen:
            seen.add(grid)
            yield name, grid


def _candidates(
    calls: int, config: Mapping[str, Any], earliest: float, latest: float
) -> Iterator[tuple[str, np.ndarray]]:
    yield "uniform", earliest + (latest - earliest) * np.arange(calls) / calls
    for name, options in _SPACINGS.items():
        try:
            yield name, np.array(sampler_spec("dpmpp-2m", calls, config, options).timesteps)
        except DipgoError:
            continue
    try:
        yield "flow", np.array(sampler_spec("flow-euler", calls, config).timesteps)
    except DipgoError:
        return

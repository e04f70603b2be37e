"""Starts of a learned sampler: a plain sampler over the state and the outputs, and inputs apart from the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from dipgo_deploy.core.learned_sampler import Combination, LearnedSampler
from dipgo_deploy.core.sampler import LinearSampler

__all__ = ["sampler_of_plain", "with_inputs"]


def with_inputs(sampler: LearnedSampler, memory: int) -> LearnedSampler:
    """The same sampler with network inputs that can move apart from the states.

    With a whole history that adds nothing: the next state can be any combination already.

    Args:
        sampler: its inputs may be empty.
        memory: outputs that an input may read.

    Returns:
        The sampler. Where it has no inputs and forgets outputs, its inputs are the states, with zeros for the outputs.
    """
    if sampler.inputs or memory >= sampler.calls:
        return sampler
    inputs = tuple(Combination(1.0, 0.0, (0.0,) * min(memory, call)) for call in range(sampler.calls))
    return replace(sampler, inputs=inputs)


def sampler_of_plain(sampler: LinearSampler, timesteps: Sequence[float], memory: int) -> LearnedSampler | None:
    """Write a plain sampler as a learned one whose states are the network's inputs.

    A step that reads an earlier state reads, by that state's own history, the outputs behind it.

    Args:
        sampler: its coefficients.
        timesteps: its times.
        memory: outputs that a step may read.

    Returns:
        The same sampler, or None where a step needs more outputs, or times repeat.
    """
    calls = len(timesteps)
    if any(later >= earlier for earlier, later in pairwise(timesteps)):
        return None
    rows = np.zeros((calls + 1, calls + 1))  # of state i over the first noise and all outputs
    rows[0, 0] = sampler.initial_scale
    for call, update in enumerate(sampler.updates):
        for back, share in enumerate(update.latents):
            rows[call + 1] += share * rows[call - back]
        for back, share in enumerate(update.outputs):
            rows[call + 1, call - back + 1] += share
    inputs = rows * np.array([*sampler.input_scales, 1.0])[:, None]
    states = []
    for call in range(calls):
        share = inputs[call + 1, 0] / inputs[call, 0] if inputs[call, 0] else 0.0
        rest = inputs[call + 1] - share * inputs[call]
        outputs = rest[1 : call + 2][::-1]
        kept = np.trim_zeros(np.where(np.abs(outputs) > 1e-12 * np.abs(outputs).max(), outputs, 0.0), "b")
        if len(kept) > memory:
            return None
        # All outputs within the memory can be corrected, also those that the plain sampler does not read.
        states.append(Combination(float(share), 0.0, tuple(outputs[: min(memory, call + 1)].tolist())))
    return LearnedSampler(tuple(timesteps), tuple(states), (), (), float(inputs[0, 0]))

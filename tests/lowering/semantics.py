"""What a BlockGraph computes and what a Schedule means, in float64 NumPy: the reference for the tests of lowering.

Nothing here uses liveness, layouts or slots: every step evaluates the whole network, takes backups from a plain list of
what was computed before, and makes the sampler's recurrence as it is written.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from dipgo_deploy.core.blocks import PREDICTION, Block, BlockGraph
from dipgo_deploy.core.sampler import LinearSampler, OpaqueSampler, SamplerReading
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.core.tensors import TensorSpec

Values = dict[str, np.ndarray]
SCALE = 2.5
"""Guidance scale of all runs."""


@cache
def _mixing(value: str, read: str, width: int, size: int) -> tuple[np.ndarray, float, float]:
    rng = np.random.default_rng(zlib.crc32(f"{value} of {read}".encode()))
    return rng.integers(0, width, size), rng.uniform(0.3, 1.0), rng.uniform(0, 6)


def piece_value(spec: TensorSpec, reads: Mapping[str, np.ndarray]) -> np.ndarray:
    """One value that a piece gives: an arbitrary smooth function of all that the piece reads, each row by itself."""
    rows = len(next(iter(reads.values())))
    size = prod(spec.shape[1:])
    total = np.zeros((rows, size))
    for name, array in reads.items():
        flat = array.reshape(rows, -1)
        columns, weight, phase = _mixing(spec.name, name, flat.shape[1], size)
        total += weight * np.sin(flat[:, columns] + phase)
    return total.reshape(rows, *spec.shape[1:])


def is_residual(schedule: Schedule, block: Block) -> bool:
    return schedule.kind == "residual" and block.name != PREDICTION and block.residual_input is not None


def nonlinear_step(step: int, latent: np.ndarray, output: np.ndarray) -> np.ndarray:
    """The made-up sampler behind Sample calls."""
    return np.tanh(0.7 * latent + output) - 0.1 * step * latent


@dataclass(frozen=True)
class Moment:
    """All that exists at one step.

    ``values``: every value as its readers see it; ``stored``: what computed blocks leave behind, by stored name;
    ``backups``: what reused blocks stand on, by stored name; ``output`` the guided output, ``latent`` the one after.
    """

    values: Values
    stored: Values
    backups: Values
    output: np.ndarray
    latent: np.ndarray


def rollout(
    graph: BlockGraph, schedule: Schedule, sampler: SamplerReading, noise: np.ndarray, conditioning: Values
) -> list[Moment]:
    """The trajectory of ``schedule``, step by step."""
    history: dict[str, list[np.ndarray]] = {}
    latents, outputs, moments = [sampler.initial_scale * noise], [], []
    for step, timestep in enumerate(schedule.contract.sampler.timesteps):
        entering = _entering(sampler, step, latents, outputs)
        rows = np.concatenate([entering] * schedule.contract.rows_per_image)
        given = {graph.inputs[0].name: rows, "timestep": np.full(len(rows), timestep), **conditioning}
        values, stored, backups = _network(graph, schedule, step, given, history)
        for name, array in stored.items():
            history.setdefault(name, []).insert(0, array)
        outputs.append(_guided(schedule, values[graph.prediction]))
        latents.append(_sampled(sampler, step, latents, outputs))
        moments.append(Moment(values, stored, backups, outputs[-1], latents[-1]))
    return moments


def _entering(sampler: SamplerReading, step: int, latents: list[np.ndarray], outputs: list[np.ndarray]) -> np.ndarray:
    if isinstance(sampler, OpaqueSampler) or not sampler.inputs:
        return latents[-1] * sampler.input_scales[step]
    update = sampler.inputs[step]
    total = np.zeros_like(latents[-1])
    for coefficients, values in ((update.latents, latents), (update.outputs, outputs)):
        for j, c in enumerate(coefficients):
            total += c * values[len(values) - 1 - j]
    return total


def _network(
    graph: BlockGraph, schedule: Schedule, step: int, given: Values, history: Mapping[str, list[np.ndarray]]
) -> tuple[Values, Values, Values]:
    values, stored, backups = dict(given), {}, {}
    owner = {feature: block for block in graph.blocks for feature in block.features}
    for piece in graph.pieces:
        for name in piece.gives:
            values[name] = piece_value(graph.values[name], {read: values[read] for read in piece.reads})
            block = owner.get(name)
            if block is None:
                continue
            entry = values[str(block.residual_input)] if is_residual(schedule, block) else None
            key = name if entry is None else f"{block.name}:residual"
            if schedule.compute[step][schedule.blocks.index(block.name)]:
                stored[key] = values[name] if entry is None else values[name] - entry
                continue
            coefficients = schedule.forecasts.get((step, block.name), (1.0,))
            terms = zip(coefficients, history[key][: len(coefficients)], strict=True)
            backups[key] = sum(c * kept for c, kept in terms)
            values[name] = backups[key] if entry is None else entry + backups[key]
    return values, stored, backups


def _guided(schedule: Schedule, prediction: np.ndarray) -> np.ndarray:
    kept = prediction[:, : schedule.contract.latent_shape[0]]
    if schedule.contract.guidance == "none":
        return kept
    unconditional, conditional = np.split(kept, 2)
    return unconditional + SCALE * (conditional - unconditional)


def _sampled(sampler: SamplerReading, step: int, latents: list[np.ndarray], outputs: list[np.ndarray]) -> np.ndarray:
    if isinstance(sampler, OpaqueSampler):
        return nonlinear_step(step, latents[-1], outputs[-1])
    assert isinstance(sampler, LinearSampler)
    update = sampler.updates[step]
    total = np.zeros_like(latents[-1])
    for j, a in enumerate(update.latents):
        total += a * latents[step - j]
    for j, b in enumerate(update.outputs):
        total += b * outputs[step - j]
    return total

"""Candidate: a method's proposal, before it becomes a checked schedule. Compute sets and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.schedule import Schedule, check_schedule

__all__ = [
    "Candidate",
    "ComputeSets",
    "agreeing_steps",
    "check_computes",
    "mask_from_sets",
    "schedule_from_sets",
    "sets_from_mask",
]

ComputeSets = Sequence[frozenset[str]]
"""Names of the computed blocks, step by step. Step 0 holds all of them."""


@dataclass(frozen=True)
class Candidate:
    """Compute sets, the pruned ratio they reach, and a text record of how they were made.

    ``sampler`` is a sampler of the candidate's own. None keeps that of the contract.
    """

    computed: ComputeSets
    ratio: float
    knobs: Mapping[str, str] = field(default_factory=dict)
    sampler: SamplerSpec | None = None


def sets_from_mask(mask: np.ndarray, names: Sequence[str]) -> list[frozenset[str]]:
    """Compute sets of a mask (steps, blocks) whose columns are ``names``."""
    return [frozenset(name for name, on in zip(names, row, strict=True) if on) for row in mask.tolist()]


def mask_from_sets(computed: ComputeSets, names: Sequence[str]) -> np.ndarray:
    """The mask (steps, blocks) of ``computed``, columns in the order of ``names``."""
    return np.array([[name in step for name in names] for step in computed])


def schedule_from_sets(
    graph: BlockGraph, contract: Contract, kind: Kind, computed: ComputeSets, origin: Mapping[str, str] | None = None
) -> Schedule:
    """Make the hold schedule that computes ``computed``, and check it.

    Args:
        graph: blocks of the model.
        contract: sampler, steps and guidance.
        kind: whether reuse is of a block's output or its residual.
        computed: names of the computed blocks, step by step.
        origin: record of how the schedule was made.

    Returns:
        The schedule.

    Raises:
        InputError: a block is reused before it was computed.
    """
    rows = tuple(tuple(block in step for block in graph.block_names) for step in computed)
    schedule = Schedule(contract, graph.granularity, kind, graph.block_names, rows, origin=origin or {})
    check_schedule(schedule, graph.block_names)
    return schedule


def agreeing_steps(schedule: Schedule, computed: ComputeSets) -> int:
    """Number of steps before the first step whose compute sets differ."""
    differing = (step for step, row in enumerate(schedule.computed) if row != computed[step])
    return next(differing, schedule.steps)


def check_computes(schedule: Schedule, nearest: ComputeSets, name: str) -> None:
    """Check that ``schedule`` computes exactly ``nearest``.

    Args:
        schedule: the schedule to express in another format.
        nearest: the nearest schedule that the format can express.
        name: the settings of the format that give ``nearest``, for the message.

    Raises:
        InputError: the schedules differ. The message names the first step and block.
    """
    step = agreeing_steps(schedule, nearest)
    if step == schedule.steps:
        return
    block = next(b for b in schedule.blocks if (b in schedule.computed[step]) != (b in nearest[step]))
    own, other = ("computes", "reuses") if block in schedule.computed[step] else ("reuses", "computes")
    raise InputError(
        f"step {step} {own} {block}, but {name}, the nearest match, {other} it: write the schedule in another format"
    )

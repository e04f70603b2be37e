"""Candidate: what a method proposes, before it becomes a checked schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.schedule import Schedule, check_schedule

__all__ = ["Candidate", "ComputeSets", "mask_from_sets", "schedule_from_sets", "sets_from_mask"]

ComputeSets = Sequence[frozenset[str]]
"""Names of the computed blocks, step by step; step 0 holds all of them."""


@dataclass(frozen=True)
class Candidate:
    """Compute sets, the pruned ratio they reach, and the knobs that made them, as text."""

    computed: ComputeSets
    ratio: float
    knobs: Mapping[str, str] = field(default_factory=dict)


def sets_from_mask(mask: np.ndarray, names: Sequence[str]) -> list[frozenset[str]]:
    """Compute sets of a mask (steps, blocks) whose columns are ``names``."""
    return [frozenset(name for name, on in zip(names, row, strict=True) if on) for row in mask.tolist()]


def mask_from_sets(computed: ComputeSets, names: Sequence[str]) -> np.ndarray:
    """The mask (steps, blocks) of ``computed``, columns in the order of ``names``."""
    return np.array([[name in step for name in names] for step in computed])


def schedule_from_sets(
    graph: BlockGraph, contract: Contract, kind: Kind, computed: ComputeSets, origin: Mapping[str, str] | None = None
) -> Schedule:
    """The hold schedule that computes ``computed``, checked. Raises InputError where a read has no earlier write."""
    rows = tuple(tuple(block in step for block in graph.block_names) for step in computed)
    schedule = Schedule(contract, graph.granularity, kind, graph.block_names, rows, origin=origin or {})
    check_schedule(schedule, graph.block_names)
    return schedule

"""Candidate: what a method proposes, before it becomes a checked schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.schedule import Schedule, check_schedule

__all__ = ["Candidate", "ComputeSets", "schedule_from_sets"]

ComputeSets = Sequence[frozenset[str]]
"""Names of the computed blocks, step by step; step 0 holds all of them."""


@dataclass(frozen=True)
class Candidate:
    """Compute sets, the pruned ratio they reach, and the knobs that made them, as text."""

    computed: ComputeSets
    ratio: float
    knobs: Mapping[str, str] = field(default_factory=dict)


def schedule_from_sets(
    graph: BlockGraph, contract: Contract, kind: Kind, computed: ComputeSets, origin: Mapping[str, str] | None = None
) -> Schedule:
    """The hold schedule that computes ``computed``, checked. Raises InputError where a read has no earlier write."""
    rows = tuple(tuple(block in step for block in graph.block_names) for step in computed)
    schedule = Schedule(contract, graph.granularity, kind, graph.block_names, rows, origin=origin or {})
    check_schedule(schedule, graph.block_names)
    return schedule

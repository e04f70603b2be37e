"""Probes of a profile: the programs that are timed.

Random schedules, some output some residual, mild and bold, in every layout that the target runs, and the full run: the
graphs that a schedule would really run, in the order in which it would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.models.sampler_reading import read_sampler
from dipgo_deploy.search.random_schedules import random_schedule

__all__ = ["loaded_together", "probe_programs"]

_KEEPS = (0.3, 0.5, 0.7, 0.5)
"""Share of entries that each random schedule computes; kinds take turns."""


def probe_programs(blocks: BlockGraph, contract: Contract, layouts: Sequence[Layout], seed: int) -> list[Program]:
    """Programs of random schedules, and of the full run, under ``contract``."""
    rng = np.random.default_rng(seed)
    has_residual = any(block.residual_input is not None for block in blocks.blocks)
    kinds: tuple[Kind, ...] = ("output", "residual") if has_residual else ("output",)
    schedules = [
        random_schedule(blocks, contract, kinds[index % len(kinds)], rng, keep) for index, keep in enumerate(_KEEPS)
    ]
    programs = [_lowered(schedule, blocks, layout) for schedule in schedules for layout in layouts]
    full = full_schedule(contract, blocks.granularity, "output", blocks.block_names)
    return [*programs, _lowered(full, blocks, "subnets")]


def _lowered(schedule: Schedule, blocks: BlockGraph, layout: Layout) -> Program:
    return lower(schedule, blocks, read_sampler(schedule.contract.sampler), LowerOptions(layout=layout))


def loaded_together(programs: Sequence[Program], most: int) -> Iterator[list[Program]]:
    """Programs in groups, in their order, whose weights make at most ``most`` bytes; a larger one stands alone."""
    group: list[Program] = []
    held = 0
    for program in programs:
        weights = sum(graph.weight_bytes for graph in program.graphs)
        if group and held + weights > most:
            yield group
            group, held = [], 0
        group.append(program)
        held += weights
    yield group

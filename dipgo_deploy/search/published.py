"""Schedules as papers publish them: a string of 0 and 1 per block, 1 = computed, without a row for the prediction.

A step that computes none of the table's blocks reuses the whole step. It becomes a step that reuses the prediction, and
calls no network; under hold both give the same where the tail does not depend on the timestep, as in a U-Net.

Tables count a sampler's steps, schedules its network calls. Where the sampler calls twice at one timestep (PLMS with 50
steps makes 51 calls, the second and the third at one), both calls take that timestep's character.
"""

from __future__ import annotations

from collections.abc import Mapping

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.schedule import Schedule, check_schedule

__all__ = ["schedule_from_table"]


def schedule_from_table(table: Mapping[str, str], graph: BlockGraph, contract: Contract, source: str = "") -> Schedule:
    """The schedule of a published ``table`` (output kind, hold) for the model of ``graph``; ``source`` is recorded.

    A table may have one character per network call, or one per distinct timestep of the sampler.

    Raises InputError where the table names other blocks, has not one 0 or 1 per network call, or reads before it wrote.
    """
    names = graph.block_names[:-1]
    if odd := sorted(set(table) ^ set(names)):
        raise InputError(f"the table and the model differ in block {odd[0]}: trace with blocks {', '.join(table)}")
    table = {name: _per_call(name, bits, contract.sampler.timesteps) for name, bits in table.items()}
    rows = [tuple(bit == "1" for bit in row) for row in zip(*(table[name] for name in names), strict=True)]
    compute = tuple((*row, any(row)) for row in rows)
    origin = {"method": "published", "source": source}
    schedule = Schedule(contract, graph.granularity, "output", (*names, PREDICTION), compute, origin=origin)
    check_schedule(schedule, graph.block_names)
    return schedule


def _per_call(name: str, bits: str, timesteps: tuple[float, ...]) -> str:
    """``bits`` with one character per network call."""
    calls, distinct = len(timesteps), list(dict.fromkeys(timesteps))
    if len(bits) not in (calls, len(distinct)) or set(bits) - {"0", "1"}:
        raise InputError(f"{name} needs {calls} characters 0 or 1, one per network call, found {bits!r}: mend it")
    if len(bits) == calls:
        return bits
    return "".join(bits[distinct.index(timestep)] for timestep in timesteps)

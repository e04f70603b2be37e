"""DiP-GO's published tables: a string of 0 and 1 per stage, 1 = computed, without a row for the prediction.

A step that computes none of the table's blocks reuses the whole step. It becomes a step that reuses the prediction and
makes no network call. Under hold both are equal where the tail does not depend on the timestep, as in a U-Net.

Tables count a sampler's steps, schedules count network calls. Where the sampler calls twice at one timestep (PLMS with
50 steps makes 51 calls, the second and the third at the same timestep), both calls take that timestep's character.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import check_document
from dipgo_deploy.core.schedule import Schedule, check_schedule

__all__ = ["DipgoTable", "read", "schedule_from_table", "write"]


@dataclass(frozen=True)
class DipgoTable:
    """A table and where it was published."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    compute: dict[str, str]
    source: str = ""


def read(document: Mapping[str, Any], graph: BlockGraph, contract: Contract) -> Schedule:
    """The schedule of a table. Raises InputError if the table has other blocks or steps."""
    table = check_document(document, DipgoTable, "dipgo")
    return schedule_from_table(table.compute, graph, contract, table.source)


def schedule_from_table(table: Mapping[str, str], graph: BlockGraph, contract: Contract, source: str = "") -> Schedule:
    """Make the schedule of a published table (output kind, hold).

    Args:
        table: by block, one character per network call, or one per distinct timestep of the sampler.
        graph: blocks of the model.
        contract: sampler, steps and guidance.
        source: where the table was published, for the record.

    Returns:
        The schedule.

    Raises:
        InputError: the table names other blocks, has another length, or reuses a block before it was computed.
    """
    names = graph.block_names[:-1]
    if differing := sorted(set(table) ^ set(names)):
        raise InputError(
            f"the table and the model differ in block {differing[0]}: trace with blocks {', '.join(table)}"
        )
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
        raise InputError(f"{name} needs {calls} characters 0 or 1, one per network call, found {bits!r}: fix it")
    if len(bits) == calls:
        return bits
    return "".join(bits[distinct.index(timestep)] for timestep in timesteps)


def write(schedule: Schedule) -> dict[str, Any]:
    """One string per block, one character per network call.

    InputError naming step and block where the prediction is reused next to a computed block, or computed without any.
    """
    for step, row in enumerate(schedule.compute):
        if row[-1] != any(row[:-1]):
            block = PREDICTION if row[-1] else schedule.blocks[row.index(True)]
            raise InputError(
                f"step {step} computes {block} alone of blocks and {PREDICTION}, but a dipgo table has no row for it: "
                "write the schedule in another format"
            )
    columns = zip(*schedule.compute, strict=True)
    bits = {name: "".join("01"[on] for on in column) for name, column in zip(schedule.blocks, columns, strict=True)}
    del bits[PREDICTION]
    return {"compute": bits, "source": schedule.origin.get("source", "")}

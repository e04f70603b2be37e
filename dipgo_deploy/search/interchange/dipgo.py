"""DiP-GO's published tables: a string of 0 and 1 per stage, one character a step of the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import check_document
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.published import schedule_from_table

__all__ = ["DipgoTable", "read", "write"]


@dataclass(frozen=True)
class DipgoTable:
    """A table and where it was published."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    compute: dict[str, str]
    source: str = ""


def read(document: Mapping[str, Any], graph: BlockGraph, contract: Contract) -> Schedule:
    """The schedule of a table; InputError where it names other blocks or other steps."""
    table = check_document(document, DipgoTable, "dipgo")
    return schedule_from_table(table.compute, graph, contract, table.source)


def write(schedule: Schedule) -> dict[str, Any]:
    """One string per block, one character per network call.

    InputError naming step and block where the prediction is reused beside a computed block, or computed without one.
    """
    for step, row in enumerate(schedule.compute):
        if row[-1] != any(row[:-1]):
            odd = PREDICTION if row[-1] else schedule.blocks[row.index(True)]
            raise InputError(
                f"step {step} computes {odd} alone of blocks and {PREDICTION}, a dipgo table has no row for it: write "
                "the schedule in another format"
            )
    columns = zip(*schedule.compute, strict=True)
    bits = {name: "".join("01"[on] for on in column) for name, column in zip(schedule.blocks, columns, strict=True)}
    del bits[PREDICTION]
    return {"compute": bits, "source": schedule.origin.get("source", "")}

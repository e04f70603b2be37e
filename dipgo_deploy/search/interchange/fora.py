"""FORA (arXiv 2407.01425): every branch of a transformer at every N-th step, only stem and tail in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import check_document
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.candidate import ComputeSets, check_computes, schedule_from_sets

__all__ = ["ForaSettings", "read", "write"]


@dataclass(frozen=True)
class ForaSettings:
    """FORA's one setting."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    interval: Annotated[int, Field(ge=1)]


def read(document: Mapping[str, Any], graph: BlockGraph, contract: Contract) -> Schedule:
    """FORA's schedule. Raises InputError for a block that is not a branch of a transformer."""
    settings = check_document(document, ForaSettings, "fora")
    for name in graph.block_names[:-1]:
        if "down_blocks" in name or "mid_block" in name or "up_blocks" in name:
            raise InputError(f"fora reuses branches of a transformer, but {name} is not one: use a transformer")
    computed = _sets(graph.block_names, contract.sampler.calls, settings.interval)
    origin = {"method": "fora", "interval": str(settings.interval)}
    return schedule_from_sets(graph, contract, "output", computed, origin)


def _sets(names: tuple[str, ...], steps: int, interval: int) -> ComputeSets:
    everything, tail = frozenset(names), frozenset([PREDICTION])
    return [tail if step % interval else everything for step in range(steps)]


def write(schedule: Schedule) -> dict[str, Any]:
    """The interval that gives this schedule. Raises InputError, naming step and block, where there is none."""
    full = [step for step, row in enumerate(schedule.compute) if all(row)]
    interval = full[1] if len(full) > 1 else schedule.steps
    nearest = _sets(schedule.blocks, schedule.steps, interval)
    check_computes(schedule, nearest, f"fora with interval {interval}")
    return {"interval": interval}

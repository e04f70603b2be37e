"""DeepCache (arXiv 2312.00858, package DeepCache 0.1.1): a shallow branch of a U-Net between full steps.

The package numbers a U-Net's layers by depth, from the outermost blocks inwards: level 0 is the first down block and
the last up block. ``cache_branch_id`` is 3 · level + layer. Between full steps the levels above ``level`` compute
whole, the deeper ones and the mid block nothing. At ``level`` itself the down block computes its first ``layer``
resnets with their attentions, the up block its last ``layer + 1``, with its upsampler and without the down block's
downsampler. A step is full if the *first* position of its timestep in the sampler's list is a multiple of
``cache_interval``. Both calls of a repeated timestep (PNDM, Heun) count as one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import check_document
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.candidate import ComputeSets, agreeing_steps, check_computes, schedule_from_sets

__all__ = ["DeepCacheSettings", "deepcache_sets", "read", "write"]

_LAYERS_A_LEVEL = 3
"""The package divides branch numbers by 3 for every model."""

_LAYER = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


@dataclass(frozen=True)
class DeepCacheSettings:
    """The arguments of ``DeepCacheSDHelper.set_params``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    cache_interval: Annotated[int, Field(ge=1)] = 1
    cache_branch_id: Annotated[int, Field(ge=0)] = 0
    skip_mode: Literal["uniform"] = "uniform"


def read(document: Mapping[str, Any], graph: BlockGraph, contract: Contract) -> Schedule:
    """The package's schedule under these settings. Raises InputError for a branch that the model lacks."""
    settings = check_document(document, DeepCacheSettings, "deepcache")
    names, timesteps = graph.block_names, contract.sampler.timesteps
    computed = deepcache_sets(names, timesteps, settings.cache_interval, settings.cache_branch_id)
    levels = _levels(names)
    if settings.cache_branch_id >= _LAYERS_A_LEVEL * levels:
        raise InputError(
            f"deepcache: cache_branch_id {settings.cache_branch_id} lies below the model's {levels} levels: give at "
            f"most {_LAYERS_A_LEVEL * levels - 1}"
        )
    origin = {"method": "deepcache", **{name: str(value) for name, value in asdict(settings).items()}}
    return schedule_from_sets(graph, contract, "output", computed, origin)


def deepcache_sets(names: Sequence[str], timesteps: Sequence[float], interval: int, branch: int) -> ComputeSets:
    """The computed layers of each step of a U-Net with layers ``names`` (the prediction last)."""
    everything, shallow = frozenset(names), _shallow(names, branch)
    first: dict[float, int] = {}
    places = [first.setdefault(timestep, step) for step, timestep in enumerate(timesteps)]
    return [shallow if place % interval else everything for place in places]


def _shallow(names: Sequence[str], branch: int) -> frozenset[str]:
    """The layers of a step between full ones, and the prediction."""
    deepest = divmod(branch, _LAYERS_A_LEVEL)
    places = {name: _place(name, names) for name in names if name != PREDICTION}
    return frozenset([PREDICTION, *(name for name, at in places.items() if at is not None and at <= deepest)])


def _place(name: str, names: Sequence[str]) -> tuple[int, int] | None:
    """The first branch, as ``(level, layer)``, that computes a layer. None for the mid block: no branch computes it.

    Raises InputError for a block that is not a layer of a U-Net.
    """
    if name.startswith("mid_block."):
        return None
    if (match := _LAYER.fullmatch(name)) is None:
        raise InputError(
            f"deepcache describes layers of a U-Net, but {name} is not one: trace a U-Net at granularity layer"
        )
    side, block, part, layer = match[1], int(match[2]), match[3], int(match[4])
    resnets = sum(other.startswith(f"{side}_blocks.{block}.resnets.") for other in names)
    if side == "down":
        return block, (resnets if part == "downsamplers" else layer) + 1
    return _levels(names) - 1 - block, 0 if part == "upsamplers" else resnets - 1 - layer


def _levels(names: Sequence[str]) -> int:
    """Number of up blocks, which is that of down blocks."""
    return len({match[2] for name in names if (match := _LAYER.fullmatch(name)) and match[1] == "up"})


def write(schedule: Schedule) -> dict[str, Any]:
    """The settings that give this schedule. Raises InputError, naming step and block, where there are none."""
    names, timesteps = schedule.blocks, schedule.contract.sampler.timesteps
    partial = next((step for step, row in enumerate(schedule.compute) if not all(row)), None)
    if partial is None:
        return asdict(DeepCacheSettings())
    shallow = schedule.computed[partial]
    branches = range(_LAYERS_A_LEVEL * _levels(names) or 1)
    branch = min(branches, key=lambda number: len(shallow ^ _shallow(names, number)))
    candidates = (deepcache_sets(names, timesteps, n, branch) for n in range(2, schedule.steps + 1))
    interval, nearest = max(enumerate(candidates, start=2), key=lambda pair: agreeing_steps(schedule, pair[1]))
    check_computes(schedule, nearest, f"deepcache with interval {interval} and branch {branch}")
    return asdict(DeepCacheSettings(interval, branch))

"""cache-dit's step computation mask under its static policy (package cache-dit 1.5.3, DBCache).

If the mask is 1, every block of the transformer is computed. If it is 0, only the first
``Fn_compute_blocks`` and the last ``Bn_compute_blocks`` are. The sum of the residuals of the blocks between them, as of
the last full step, is added again. A mask counts network calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import check_document
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.candidate import ComputeSets, check_computes, schedule_from_sets

__all__ = ["CacheDitSettings", "read", "write"]


@dataclass(frozen=True)
class CacheDitSettings:
    """The fields of ``DBCacheConfig`` that say which blocks run, and those that a static mask overrules (unused)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    steps_computation_mask: tuple[Literal[0, 1], ...]
    steps_computation_policy: Literal["static"]
    Fn_compute_blocks: Annotated[int, Field(ge=1)] = 8
    Bn_compute_blocks: Annotated[int, Field(ge=0)] = 0
    num_inference_steps: int | None = None
    residual_diff_threshold: float | None = None
    max_warmup_steps: int | None = None
    warmup_interval: int | None = None
    max_cached_steps: int | None = None
    max_continuous_cached_steps: int | None = None


@dataclass(frozen=True)
class _File:
    """A file in the form that cache-dit's loader reads."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    cache_config: CacheDitSettings


def read(document: Mapping[str, Any], graph: BlockGraph, contract: Contract) -> Schedule:
    """The schedule of a mask. Raises InputError for a mask of another length, or a block without a residual.

    ``document`` holds the settings, directly or as ``cache_config``.
    """
    if "cache_config" in document:
        settings = check_document(document, _File, "cache-dit").cache_config
    else:
        settings = check_document(document, CacheDitSettings, "cache-dit")
    mask, calls = settings.steps_computation_mask, contract.sampler.calls
    if len(mask) != calls:
        raise InputError(
            f"cache-dit: steps_computation_mask has {len(mask)} entries, the sampler makes {calls} network calls: give "
            "one each"
        )
    first, last = settings.Fn_compute_blocks, settings.Bn_compute_blocks
    computed = _sets(graph.block_names, mask, first, last)
    _check_residuals(graph, computed)
    origin = {"method": "cache-dit", "first": str(first), "last": str(last)}
    return schedule_from_sets(graph, contract, "residual", computed, origin)


def _sets(names: tuple[str, ...], mask: tuple[int, ...], first: int, last: int) -> ComputeSets:
    blocks = names[:-1]
    if first + last >= len(blocks):
        raise InputError(
            f"cache-dit: the first {first} and the last {last} blocks leave none of {len(blocks)} between them: give "
            "fewer (Fn_compute_blocks is 8 where left out)"
        )
    outer = frozenset((*blocks[:first], *blocks[len(blocks) - last :], PREDICTION))
    return [frozenset(names) if on else outer for on in mask]


def _check_residuals(graph: BlockGraph, computed: ComputeSets) -> None:
    for step, row in enumerate(computed):
        for block in graph.blocks[:-1]:
            if block.name not in row and block.residual_input is None:
                raise InputError(
                    f"step {step}: cache-dit reuses what {block.name} adds, but its output is not one tensor of its "
                    "input's shape: use a transformer of one stream"
                )


def write(schedule: Schedule) -> dict[str, Any]:
    """The mask and block counts that give this schedule. Raises InputError, naming step and block, otherwise."""
    mask = tuple(int(all(row)) for row in schedule.compute)
    first, last = 1, 0
    if 0 in mask:
        row = schedule.compute[mask.index(0)][:-1]
        if not all(row):
            first = max(row.index(False), 1)
            last = min(row[::-1].index(False), len(row) - first - 1)
        nearest = _sets(schedule.blocks, mask, first, last)
        check_computes(schedule, nearest, f"cache-dit with the first {first} and the last {last} blocks computed")
    settings = {
        "Fn_compute_blocks": first,
        "Bn_compute_blocks": last,
        "num_inference_steps": schedule.steps,
        "steps_computation_mask": list(mask),
        "steps_computation_policy": "static",
    }
    return {"cache_config": settings}

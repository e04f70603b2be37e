"""What a picture of a schedule shows, whether drawn or printed: the state and age of every block at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.liveness import plan_steps
from dipgo_deploy.core.schedule import Schedule

__all__ = ["COMPUTED", "DEAD", "REUSED", "Cells", "origin_line", "read_cells", "sampler_line", "short_names"]

REUSED, COMPUTED, DEAD = 0, 1, 2
"""States of a cell. ``DEAD``: the schedule computes the block, but nothing reads it, so it does not run."""


@dataclass(frozen=True)
class Cells:
    """Blocks × steps, and per step the share of a full step that is kept.

    ``state`` and ``age`` have shape (blocks, steps); ``age`` counts the steps since the feature was computed, 0 for a
    computed one; ``forecast`` marks reuses with coefficients of their own. ``kept`` is a share of MACs (``papers``)
    where ``exact``, otherwise of blocks, since costs and dead blocks are known from a BlockGraph only.
    """

    state: np.ndarray
    age: np.ndarray
    forecast: np.ndarray
    kept: np.ndarray
    exact: bool

    @property
    def calls(self) -> int:
        """Network calls per image; an upper bound unless ``exact``, since a call may compute in vain."""
        return int(np.count_nonzero((self.state == COMPUTED).any(axis=0)))

    @property
    def ratio(self) -> float | None:
        """The pruned ratio, where it is known."""
        return 1.0 - float(self.kept.mean()) if self.exact else None


def read_cells(schedule: Schedule, graph: BlockGraph | None = None) -> Cells:
    """The cells of ``schedule``; dead blocks and MACs where its BlockGraph is given."""
    computed = np.array(schedule.compute, dtype=bool).T
    forecast = np.zeros_like(computed)
    for step, block in schedule.forecasts:
        forecast[schedule.blocks.index(block), step] = True
    state = np.where(computed, COMPUTED, REUSED)
    kept = computed.mean(axis=0)
    if graph is not None:
        plans = plan_steps(schedule, graph)
        runs = np.array([[block in plan.reach.computes for plan in plans] for block in schedule.blocks])
        state = np.where(computed & ~runs, DEAD, state)
        costs = [graph.cost(graph.pieces[index] for index in plan.reach.pieces).papers for plan in plans]
        kept = np.array(costs) / graph.macs.papers
    return Cells(state, _ages(computed), forecast, kept, graph is not None)


def _ages(computed: np.ndarray) -> np.ndarray:
    steps = np.arange(computed.shape[1])
    latest = np.maximum.accumulate(np.where(computed, steps, 0), axis=1)
    return steps - latest


def origin_line(schedule: Schedule, cells: Cells) -> str:
    """Method and pruned ratio, such as ``deepcache, pruned ratio 0.793 (asked 0.8)``."""
    method, asked = schedule.origin.get("method", "schedule"), schedule.origin.get("ratio")
    ratio = f", pruned ratio {cells.ratio:.3f}" if cells.ratio is not None else ""
    return method + ratio + (f" (asked {asked})" if asked else "")


def sampler_line(schedule: Schedule, cells: Cells) -> str:
    """Sampler, steps, calls, granularity and kind."""
    sampler = schedule.contract.sampler
    calls = f"{'' if cells.exact else 'at most '}{cells.calls} network calls"
    return (
        f"{sampler.class_name.removesuffix('Scheduler')}, {schedule.steps} steps, {calls}; "
        f"{schedule.granularity} blocks, {schedule.kind} reuse"
    )


def short_names(blocks: tuple[str, ...], width: int = 24) -> list[str]:
    """Block names shortened to ``width`` characters, such as ``down.0.resnets.1`` for ``down_blocks.0.resnets.1``.

    All stay whole where two would become equal.
    """
    plain = [".".join(part.removesuffix("_blocks").removesuffix("_block") for part in b.split(".")) for b in blocks]
    short = [name if len(name) <= width else "…" + name[1 - width :] for name in plain]
    return short if len(set(short)) == len(blocks) else list(blocks)

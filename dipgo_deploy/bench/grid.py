"""The contents of a schedule picture, drawn or printed: state and age of every block at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.learned_sampler import read_learned_sampler
from dipgo_deploy.core.liveness import plan_steps
from dipgo_deploy.core.schedule import Schedule

__all__ = [
    "COMPUTED",
    "DEAD",
    "REUSED",
    "ScheduleGrid",
    "heading_line",
    "learned_lines",
    "origin_line",
    "read_grid",
    "sampler_line",
    "short_names",
]

REUSED, COMPUTED, DEAD = 0, 1, 2
"""States of a cell. ``DEAD``: the schedule computes the block, but no step reads the feature, so the block never runs.
"""


@dataclass(frozen=True)
class ScheduleGrid:
    """Cells of blocks × steps, and the kept share of each step.

    Attributes:
        state: (blocks, steps), one of the states above.
        age: (blocks, steps), the steps since the feature was computed. 0 for a computed feature.
        forecast: (blocks, steps), whether a reuse has coefficients of its own.
        kept: (steps,), the share of a full step that runs: of MACs (``papers``) if ``exact``, otherwise of blocks.
        exact: whether a BlockGraph was given. Dead blocks and MACs are known only with a BlockGraph.
    """

    state: np.ndarray
    age: np.ndarray
    forecast: np.ndarray
    kept: np.ndarray
    exact: bool

    @property
    def calls(self) -> int:
        """Network calls per image. An upper bound unless ``exact``, since dead blocks look computed."""
        return int(np.count_nonzero((self.state == COMPUTED).any(axis=0)))

    @property
    def ratio(self) -> float | None:
        """The pruned ratio, or None if unknown."""
        return 1.0 - float(self.kept.mean()) if self.exact else None


def read_grid(schedule: Schedule, graph: BlockGraph | None = None) -> ScheduleGrid:
    """Read the grid of a schedule.

    Args:
        schedule: any schedule.
        graph: its BlockGraph, for dead blocks and MACs.

    Returns:
        The grid, ``exact`` if ``graph`` is given.
    """
    computed = np.array(schedule.compute, dtype=bool).T
    forecast = np.zeros_like(computed)
    for step, block in schedule.forecasts:
        forecast[schedule.blocks.index(block), step] = True
    state = np.where(computed, COMPUTED, REUSED)
    kept = computed.mean(axis=0)
    if graph is not None:
        step_plans = plan_steps(schedule, graph)
        runs = np.array([[block in plan.reach.computes for plan in step_plans] for block in schedule.blocks])
        state = np.where(computed & ~runs, DEAD, state)
        costs = [graph.cost(graph.pieces[index] for index in plan.reach.pieces).papers for plan in step_plans]
        kept = np.array(costs) / graph.macs.papers
    return ScheduleGrid(state, _ages(computed), forecast, kept, graph is not None)


def _ages(computed: np.ndarray) -> np.ndarray:
    steps = np.arange(computed.shape[1])
    last_computed = np.maximum.accumulate(np.where(computed, steps, 0), axis=1)
    return steps - last_computed


def origin_line(schedule: Schedule, grid: ScheduleGrid) -> str:
    """Method, pruned ratio and search cost of a schedule.

    Args:
        schedule: the schedule.
        grid: the grid of the schedule.

    Returns:
        Such as ``evolutionary, pruned ratio 0.793 (requested 0.8), search cost 300 trajectories``.
    """
    origin = schedule.origin
    if "full_run" in origin:
        return f"{origin.get('method', 'schedule')}, {schedule.steps} calls in place of {origin['full_run']}"
    ratio = f", pruned ratio {grid.ratio:.3f}" if grid.ratio is not None else ""
    requested = f" (requested {origin['ratio']})" if origin.get("ratio") else ""
    # Older schedule files call the search cost "spent".
    cost = origin.get("search_cost", origin.get("spent"))
    trajectories = f", search cost {cost} trajectories" if cost else ""
    return origin.get("method", "schedule") + ratio + requested + trajectories


def heading_line(schedule: Schedule, grid: ScheduleGrid) -> str:
    """`origin_line`, with the ratio that the search recorded where the grid does not know the ratio.

    Args:
        schedule: the schedule.
        grid: the grid of the schedule.

    Returns:
        Such as ``deepcache (requested 0.5), recorded ratio 0.492``.
    """
    recorded = schedule.origin.get("reached")
    if grid.exact or recorded is None or "full_run" in schedule.origin:
        return origin_line(schedule, grid)
    measure = "of the time" if "latency" in schedule.origin else ""
    return " ".join(f"{origin_line(schedule, grid)}, recorded ratio {recorded} {measure}".split())


def sampler_line(schedule: Schedule, grid: ScheduleGrid) -> str:
    """Sampler, steps, calls, granularity and kind of a schedule.

    Args:
        schedule: the schedule.
        grid: the grid of the schedule.

    Returns:
        Such as ``DDIM, 50 steps, 10 network calls; stage blocks, output reuse``.
    """
    sampler = schedule.contract.sampler
    calls = f"{'' if grid.exact else 'at most '}{grid.calls} network calls"
    return (
        f"{sampler.class_name.removesuffix('Scheduler')}, {schedule.steps} steps, {calls}; "
        f"{schedule.granularity} blocks, {schedule.kind} reuse"
    )


def learned_lines(schedule: Schedule) -> list[str]:
    """Quality and times of a schedule with a learned sampler.

    Args:
        schedule: the schedule.

    Returns:
        One line each. Empty for other schedules.
    """
    origin, lines = schedule.origin, []
    if "score_db" in origin and "teacher" in origin:
        plain = f", {origin['best_plain']} {origin['best_plain_db']} dB" if "best_plain_db" in origin else ""
        lines = [f"PSNR to the teacher on held-out images: {origin['score_db']} dB{plain}; teacher {origin['teacher']}"]
    try:
        learned = read_learned_sampler(schedule.contract.sampler.config_dict["samplers"][0])
    except (LookupError, TypeError, ValueError):
        return lines
    lines += [f"network times: {_times(learned.timesteps)}; at most {learned.memory} outputs a step"]
    if learned.grid:
        lines += [f"fitted to the states at: {_times(learned.grid)}"]
    return lines


def _times(times: tuple[float, ...]) -> str:
    digits = 1 if max(times) > 10 else 4
    return ", ".join(f"{time:.{digits}f}" for time in times)


def short_names(blocks: tuple[str, ...], width: int = 24) -> list[str]:
    """Shorten block names, such as ``down_blocks.0.resnets.1`` to ``down.0.resnets.1``.

    Args:
        blocks: names of blocks.
        width: most characters of a name. A longer name loses its beginning.

    Returns:
        The short names, or ``blocks`` where two short names would be equal.
    """
    plain = [".".join(part.removesuffix("_blocks").removesuffix("_block") for part in b.split(".")) for b in blocks]
    short = [name if len(name) <= width else "…" + name[1 - width :] for name in plain]
    return short if len(set(short)) == len(blocks) else list(blocks)

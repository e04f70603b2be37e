"""Budget: at most K graphs, by letting some steps compute more blocks than their schedule requires.

1. Count the distinct compute rows of the steps that call the network.
2. While there are more than K, unite the pair of rows whose union adds the fewest MACs over its steps.
3. Steps with the same row must share a graph, so the schedule is lowered with ``share_graphs``. A shared graph writes
   more features and may read more, so that a step without a call needs one. Therefore rows are counted again until
   there are at most K.
4. A step that computes more blocks never reads a feature that was not written, so a valid schedule stays valid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.liveness import plan_steps, reach
from dipgo_deploy.core.schedule import Schedule

__all__ = ["limit_graphs"]

Row = frozenset[str]


def limit_graphs(schedule: Schedule, graph: BlockGraph, max_graphs: int) -> Schedule:
    """Reduce a schedule to a number of distinct compute rows. The search is greedy in added MACs.

    Args:
        schedule: the schedule.
        graph: the blocks of the model.
        max_graphs: the largest number of graphs.

    Returns:
        A schedule whose rows are supersets of the original rows.

    Raises:
        UsageError: ``max_graphs`` is below 1, or an added computation changes the source steps of a forecast, whose
            coefficients belong to the original steps.
    """
    if max_graphs < 1:
        raise UsageError(f"max_graphs must be at least 1, got {max_graphs}")
    origin = {**schedule.origin, "max_graphs": str(max_graphs)}
    limited = schedule
    while len(calling := _calling_rows(limited, graph)) > max_graphs:
        limited = _unite_rows(limited, graph, calling, max_graphs)
    for step, block in limited.forecasts:
        if limited.sources(step, block) != schedule.sources(step, block):
            raise UsageError(
                f"max_graphs {max_graphs} changes the source steps of the forecast of {block} at step {step}, whose "
                "coefficients belong to the original steps: raise max_graphs, or hold that block"
            )
    return replace(limited, origin=origin)


def _calling_rows(schedule: Schedule, graph: BlockGraph) -> dict[Row, tuple[Row, list[int]]]:
    """For each compute row of a calling step, the blocks that are reached, and the steps."""
    calling: dict[Row, tuple[Row, list[int]]] = {}
    for plan in plan_steps(schedule, graph, share_rows=True):
        if plan.is_call:
            row = schedule.computed[plan.step]
            live, steps = calling.get(row, (frozenset(), []))
            calling[row] = (live | plan.reach.computes, [*steps, plan.step])
    return calling


def _unite_rows(
    schedule: Schedule, graph: BlockGraph, calling: Mapping[Row, tuple[Row, list[int]]], max_graphs: int
) -> Schedule:
    """Unite the cheapest pair of rows until ``max_graphs`` rows are left."""
    live = {row: computes for row, (computes, _) in calling.items()}
    rows = {step: row for row, (_, steps) in calling.items() for step in steps}
    weight = Counter(rows.values())
    costs: dict[tuple[Row, Row], int] = {}

    def added(pair: tuple[Row, Row]) -> tuple[int, list[str]]:
        union = (pair[0] | pair[1], live[pair[0]] | live[pair[1]])
        total = 0
        for row in pair:
            for key in (union, (row, live[row])):
                if key not in costs:
                    costs[key] = _row_macs(graph, key, schedule)
            total += weight[row] * (costs[union] - costs[row, live[row]])
        return total, sorted(union[0])

    while len(weight) > max_graphs:
        first, second = min(combinations(weight, 2), key=added)
        union = first | second
        live[union] = live.get(union, frozenset()) | live[first] | live[second]
        count = weight.pop(first) + weight.pop(second)
        weight[union] += count
        rows = {step: union if row in (first, second) else row for step, row in rows.items()}
    computed = [rows.get(step, schedule.computed[step]) for step in range(schedule.steps)]
    return schedule.with_compute(computed)


def _row_macs(graph: BlockGraph, key: tuple[Row, Row], schedule: Schedule) -> int:
    """MACs of a graph that computes ``row`` and gives the features of its ``live`` blocks."""
    row, live = key
    demands = [feature for name in live for feature in graph.block_of_name[name].features]
    reached = reach(graph, row, demands, schedule.kind)
    return graph.cost(graph.pieces[index] for index in reached.pieces).papers

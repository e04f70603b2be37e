"""Budget: at most K graphs, by letting steps compute more than the schedule asks for.

1. Count the distinct compute rows of the steps that call the network.
2. While there are more than K, unite the pair of rows whose union adds the least MACs over its steps.
3. Steps that share a row must share a graph: lower with ``share_graphs``. A graph that writes more may read more and so
   wake a step that called no network before: count again, until nothing is left to unite.
A superset of computed blocks never reads what was not written, so a valid schedule stays valid.
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
    """The schedule with at most ``max_graphs`` distinct compute rows, at the least added MACs (greedy).

    Raises UsageError for fewer than one graph, and where an added call changes the features that a forecast stands on:
    its coefficients were made for others.
    """
    if max_graphs < 1:
        raise UsageError(f"at least 1 graph is needed, --limit-graphs {max_graphs} was asked for: give 1 or more")
    origin = {**schedule.origin, "max_graphs": str(max_graphs)}
    limited = schedule
    while len(calling := _calling_rows(limited, graph)) > max_graphs:
        limited = _unite_rows(limited, graph, calling, max_graphs)
    for step, block in limited.forecasts:
        if limited.sources(step, block) != schedule.sources(step, block):
            raise UsageError(
                f"with at most {max_graphs} graphs the forecast of {block} at step {step} would stand on other steps "
                "than its coefficients were made for: allow more graphs, or hold that block"
            )
    return replace(limited, origin=origin)


def _calling_rows(schedule: Schedule, graph: BlockGraph) -> dict[Row, tuple[Row, list[int]]]:
    """By compute row: the blocks of it that are really computed, and the steps that call the network with it."""
    found: dict[Row, tuple[Row, list[int]]] = {}
    for plan in plan_steps(schedule, graph, share_rows=True):
        if plan.is_call:
            row = schedule.computed[plan.step]
            live, steps = found.get(row, (frozenset(), []))
            found[row] = (live | plan.reach.computes, [*steps, plan.step])
    return found


def _unite_rows(
    schedule: Schedule, graph: BlockGraph, calling: Mapping[Row, tuple[Row, list[int]]], max_graphs: int
) -> Schedule:
    """Unite rows pair by pair, the cheapest first, until ``max_graphs`` are left."""
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
    found = reach(graph, row, demands, schedule.kind)
    return graph.cost(graph.pieces[index] for index in found.pieces).papers

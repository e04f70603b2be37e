"""Layouts: the graphs of a bundle, and the graphs that each step runs.

1. ``subnets``: steps with equal computed blocks and equal reads share a graph that writes the union of their features.
   Steps do not share a graph if one of them would run a piece with MACs or weights that only another step needs.
2. ``segments``: pieces that run at the same steps form one graph, so that each weight is in exactly one graph.
3. Both layouts cost the MACs that the schedule's ratio counts. `lowering.budget` trades MACs for fewer graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.liveness import StepPlan, block_of_stored, is_residual, reach
from dipgo_deploy.core.program import Graph, Layout
from dipgo_deploy.core.schedule import MAIN_EXPERT, Schedule

__all__ = ["GraphPlan", "plan_segments", "plan_subnets"]


@dataclass(frozen=True)
class GraphPlan:
    """All graphs, and for every step the indices of the graphs that run, in order."""

    layout: Layout
    graphs: tuple[Graph, ...]
    by_step: tuple[tuple[int, ...], ...]


_SubnetKey = tuple[str, frozenset[str], frozenset[str], frozenset[int]]


def plan_subnets(schedule: Schedule, graph: BlockGraph, plans: Sequence[StepPlan]) -> GraphPlan:
    """One graph per distinct combination of computed blocks, reads, and pieces with a cost.

    Args:
        schedule: which blocks each step computes.
        graph: the blocks of the model.
        plans: the plan of each step.

    Returns:
        The graphs in order of first use.
    """
    keys: dict[_SubnetKey, set[str]] = {}
    for plan in plans:
        if plan.is_call:
            keys.setdefault(_subnet_key(schedule, graph, plan), set()).update(plan.writes)
    order = {key: index for index, key in enumerate(keys)}
    graphs: list[Graph] = []
    for (expert, computes, reads, _), writes in keys.items():
        pieces = reach(graph, computes, writes, schedule.kind).pieces
        graphs.append(_graph(graph, f"subnet_{len(graphs):02d}", expert, pieces, computes, reads, writes))
    by_step = tuple((order[_subnet_key(schedule, graph, plan)],) if plan.is_call else () for plan in plans)
    return GraphPlan("subnets", tuple(graphs), by_step)


def _subnet_key(schedule: Schedule, graph: BlockGraph, plan: StepPlan) -> _SubnetKey:
    expert = schedule.experts[plan.step] if schedule.experts else MAIN_EXPERT
    # Shape arithmetic has pieces too. They cost nothing, so they are no reason for another graph.
    costly = frozenset(i for i in plan.reach.pieces if graph.pieces[i].macs.full or graph.pieces[i].weights)
    return expert, plan.reach.computes, plan.reach.reads, costly


def _graph(
    graph: BlockGraph,
    name: str,
    expert: str,
    pieces: Iterable[int],
    computes: Iterable[str],
    reads: Collection[str],
    writes: Collection[str],
) -> Graph:
    members = [graph.pieces[index] for index in sorted(pieces)]
    network = {spec.name for spec in graph.inputs}
    used = network & {value for piece in members for value in piece.reads}
    used |= network & _residual_entries(graph, (*reads, *writes))
    return Graph(
        name=name,
        expert=expert,
        computes=tuple(b for b in graph.block_names if b in set(computes)),
        inputs=tuple(spec.name for spec in graph.inputs if spec.name in used),
        reads=tuple(sorted(reads)),
        writes=tuple(sorted(writes)),
        pieces=tuple(piece.index for piece in members),
        macs=graph.cost(members),
        weight_bytes=graph.weight_bytes_of(members),
    )


def _residual_entries(graph: BlockGraph, names: Iterable[str]) -> set[str]:
    """The values that a graph adds residuals to or subtracts from outputs."""
    blocks = {block_of_stored(graph, name) for name in names if name not in graph.values}
    return {entry for name in blocks if (entry := graph.block_of_name[name].residual_input) is not None}


def plan_segments(schedule: Schedule, graph: BlockGraph, plans: Sequence[StepPlan]) -> GraphPlan:
    """Partition the pieces that ever run into graphs that run as a whole.

    1. Pieces that run at the same steps belong together, unless a value between them is ever read from the store.
    2. Greedy list scheduling keeps the partition free of cycles: take all ready pieces of one kind, then of the next.
    3. A graph gives what other graphs read, what is stored, and what combinations outside need.
    """
    steps_of = {p.index: tuple(plan.step for plan in plans if p.index in plan.reach.pieces) for p in graph.pieces}
    activity = {index: steps for index, steps in steps_of.items() if steps}
    parts = _partition(graph, activity, _forced_borders(schedule, graph, plans))
    needed = _values_outside(schedule, graph, plans)
    network = {spec.name for spec in graph.inputs}
    graphs: list[Graph] = []
    for number, part in enumerate(parts):
        gives = {value for index in part for value in graph.pieces[index].gives}
        reads = {value for index in part for value in graph.pieces[index].reads}
        others = {v for index in activity if index not in part for v in graph.pieces[index].reads}
        computes = {graph.block_of_feature[v] for v in gives if v in graph.block_of_feature}
        borders = gives & (others | needed)
        graphs.append(
            _graph(graph, f"segment_{number:02d}", MAIN_EXPERT, part, computes, reads - gives - network, borders)
        )
    runs = [set(activity[next(iter(part))]) for part in parts]
    by_step = tuple(tuple(i for i, steps in enumerate(runs) if plan.step in steps) for plan in plans)
    return GraphPlan("segments", tuple(graphs), by_step)


def _forced_borders(schedule: Schedule, graph: BlockGraph, plans: Sequence[StepPlan]) -> set[tuple[str, int]]:
    """``(value, reading piece)`` pairs where the value comes from the store at some step the piece runs."""
    forced = set()
    for plan in plans:
        computed = schedule.computed[plan.step]
        for index in plan.reach.pieces:
            for value in graph.pieces[index].reads:
                owner = graph.block_of_feature.get(value)
                if owner is not None and owner not in computed:
                    forced.add((value, index))
    return forced


def _partition(
    graph: BlockGraph, activity: Mapping[int, tuple[int, ...]], forced: set[tuple[str, int]]
) -> list[frozenset[int]]:
    parts: list[frozenset[int]] = []
    done: set[int] = set()
    remaining = sorted(activity)
    while remaining:
        options = {}
        for index in remaining:
            group = activity[index]
            if group not in options and _is_ready(graph, index, activity, done, set(), forced):
                options[group] = _absorb(graph, remaining, activity, group, done, forced)
        left = Counter(activity[index] for index in remaining)
        best = max(options, key=lambda group: (len(options[group]) == left[group], len(options[group])))
        parts.append(frozenset(options[best]))
        done |= options[best]
        remaining = [index for index in remaining if index not in done]
    return parts


def _absorb(
    graph: BlockGraph,
    remaining: Sequence[int],
    activity: Mapping[int, tuple[int, ...]],
    group: tuple[int, ...],
    done: set[int],
    forced: set[tuple[str, int]],
) -> set[int]:
    """All pieces of ``group`` that can run in one graph now. Pieces are in topological order, so one pass suffices."""
    taken: set[int] = set()
    for index in remaining:
        if activity[index] == group and _is_ready(graph, index, activity, done, taken, forced):
            taken.add(index)
    return taken


def _is_ready(
    graph: BlockGraph,
    index: int,
    activity: Mapping[int, tuple[int, ...]],
    done: set[int],
    taken: set[int],
    forced: set[tuple[str, int]],
) -> bool:
    for value in graph.pieces[index].reads:
        giver = graph.giver.get(value)
        if giver is None or giver.index not in activity or giver.index in done:
            continue
        if giver.index not in taken or (value, index) in forced:
            return False
    return True


def _values_outside(schedule: Schedule, graph: BlockGraph, plans: Sequence[StepPlan]) -> set[str]:
    """Values that the store or a combination between graphs needs."""
    needed: set[str] = set()
    for plan in plans:
        for name in plan.writes | plan.reach.reads:
            block = block_of_stored(graph, name)
            if not is_residual(graph, block, schedule.kind):
                needed.add(name)
                continue
            entry = graph.block_of_name[block].residual_input
            assert entry is not None
            needed |= {entry, *(graph.block_of_name[block].features if name in plan.writes else ())}
    return needed

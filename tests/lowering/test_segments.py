"""Segments: a partition of all pieces that ever run, each weight in one graph, and an order without cycles."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings

from dipgo_deploy.core.liveness import plan_steps
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.lowering import LowerOptions, lower
from tests.lowering.cases import Case, cases, contract, made_up_sampler, random_graph, small

MANY = settings(max_examples=150, deadline=None)


def segments_of(case: Case) -> Program:
    return lower(case.schedule, case.graph, case.sampler, LowerOptions("segments"))


@MANY
@given(cases())
def test_every_piece_and_weight_lies_in_exactly_one_graph(case: Case) -> None:
    program = segments_of(case)
    active = {i for plan in plan_steps(case.schedule, case.graph) for i in plan.reach.pieces}
    assert Counter(i for graph in program.graphs for i in graph.pieces) == Counter(active)
    weights = Counter(w for graph in program.graphs for i in graph.pieces for w in case.graph.pieces[i].weights)
    assert set(weights.values()) == {1}
    whole = case.graph.weight_bytes_of(case.graph.pieces[i] for i in active)
    assert sum(graph.weight_bytes for graph in program.graphs) == whole <= case.graph.weight_bytes


@MANY
@given(cases())
def test_a_graph_runs_all_its_pieces_or_none(case: Case) -> None:
    program = segments_of(case)
    for plan in plan_steps(case.schedule, case.graph):
        runs = [program.graph_of_name[run.graph] for run in program.runs if run.step == plan.step]
        assert sorted(i for graph in runs for i in graph.pieces) == sorted(plan.reach.pieces)
        names = [graph.name for graph in runs]
        assert names == sorted(names) and len({*names}) == len(names)


@MANY
@given(cases())
def test_the_order_of_graphs_has_no_cycle(case: Case) -> None:
    """What a graph takes straight from another one at some step comes from a graph before it in the list."""
    program = segments_of(case)
    place = {index: number for number, graph in enumerate(program.graphs) for index in graph.pieces}
    for run in program.runs:
        graph = program.graph_of_name[run.graph]
        for name in graph.reads:
            owner = case.graph.block_of_feature.get(name)
            giver = case.graph.giver[name]
            if owner is None or owner in case.schedule.computed[run.step]:
                assert place[giver.index] < program.graphs.index(graph)


@MANY
@given(cases())
def test_macs_do_not_depend_on_the_layout(case: Case) -> None:
    whole = lower(case.schedule, case.graph, case.sampler)
    assert segments_of(case).macs == whole.macs
    rows = case.schedule.contract.rows_per_image
    steps = [
        case.graph.cost(case.graph.pieces[i] for i in p.reach.pieces) for p in plan_steps(case.schedule, case.graph)
    ]
    assert whole.macs.papers == rows * sum(macs.papers for macs in steps)
    assert whole.full_macs.papers == rows * case.graph.macs.papers * case.schedule.steps


@pytest.mark.parametrize("seed", [853, 1031, 1568])
def test_a_feature_that_only_one_step_needs_is_not_made_at_another(seed: int) -> None:
    """Two steps compute the same blocks from the same reads, and one of them wants a second feature of a block."""
    rng = np.random.default_rng(seed)
    graph = small(random_graph(seed, 3))
    compute = np.vstack([np.ones(4, bool), rng.random((4, 4)) < 0.6])
    rows = tuple(map(tuple, compute.tolist()))
    schedule = Schedule(contract(graph, 5, "none"), "stage", "output", graph.block_names, rows)
    sampler = made_up_sampler(5, (1, 1), rng)
    subnets, segments = (lower(schedule, graph, sampler, LowerOptions(layout)) for layout in ("subnets", "segments"))
    assert subnets.macs == segments.macs
    alike = {(graph.computes, graph.reads) for graph in subnets.graphs}
    assert len(alike) < len(subnets.graphs)

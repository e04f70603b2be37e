"""Arbitrary schedules are valid, and what adding a computed block does to the cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.liveness import plan_steps, pruned_ratio, reach
from dipgo_deploy.core.schedule import check_schedule, full_schedule
from dipgo_deploy.search.random_schedules import random_schedule
from tests.search.graphs import chain_like, contract_of, stored_names, unet_like

GRAPHS = st.sampled_from([(unet_like(), "output"), (chain_like(), "output"), (chain_like(), "residual")])
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(GRAPHS, SEEDS, st.floats(0, 1), st.integers(1, 12))
def test_random_schedules_can_be_run(case: tuple[BlockGraph, Kind], seed: int, keep: float, steps: int) -> None:
    graph, kind = case
    schedule = random_schedule(graph, contract_of(graph, steps), kind, np.random.default_rng(seed), keep)
    check_schedule(schedule, graph.block_names)
    assert schedule.computed[0] == set(graph.block_names) and schedule.kind == kind
    assert len(plan_steps(schedule, graph)) == steps and -1e-9 <= pruned_ratio(schedule, graph) <= 1 - 1 / steps + 1e-9


def test_random_schedules_hold_predictions_and_compute_single_blocks() -> None:
    graph = unet_like()
    schedule = random_schedule(graph, contract_of(graph, 40), "output", np.random.default_rng(0), 0.5)
    plans = plan_steps(schedule, graph)
    assert any(PREDICTION not in step for step in schedule.computed)
    assert any(0 < len(plan.reach.computes) < len(graph.blocks) for plan in plans)
    assert all(type(on) is bool for row in schedule.compute for on in row)


@settings(max_examples=60, deadline=None)
@given(GRAPHS, SEEDS, st.floats(0, 1))
def test_a_step_costs_no_less_when_one_more_block_is_computed(
    case: tuple[BlockGraph, Kind], seed: int, keep: float
) -> None:
    """Given its demands; of whole schedules this is not true, see below."""
    graph, kind = case
    rng = np.random.default_rng(seed)
    computed = frozenset(name for name in graph.block_names if rng.random() < keep)
    more = computed | {graph.block_names[rng.integers(len(graph.blocks))]}
    demands = [name for block in computed if rng.random() < 0.5 for name in stored_names(graph, block, kind)]
    assert reach(graph, computed, demands, kind).pieces <= reach(graph, more, demands, kind).pieces


def test_computing_one_more_block_can_make_a_schedule_cheaper() -> None:
    """The pruned ratio is not monotone.

    At step 1 the prediction is reused, and the mid block and all before it run for step 2 alone, where the down blocks
    run again for their skip connections. Computing the mid block there too spares step 1 altogether.
    """
    graph = unet_like()
    whole = frozenset(graph.block_names)
    down = frozenset(name for name in whole if name.startswith("down"))
    without = [whole, down | {"mid_block"}, whole - {"mid_block"}]
    more = [*without[:2], whole]
    start = full_schedule(contract_of(graph, 3), graph.granularity, "output", graph.block_names)
    assert pruned_ratio(start.with_compute(more), graph) == pytest.approx(1 / 3)
    assert pruned_ratio(start.with_compute(without), graph) < 0.25

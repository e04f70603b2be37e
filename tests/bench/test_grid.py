"""States, ages and shares of a schedule's grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dipgo_deploy.bench.grid import (
    COMPUTED,
    DEAD,
    REUSED,
    heading_line,
    origin_line,
    read_grid,
    sampler_line,
    short_names,
)
from dipgo_deploy.core.liveness import plan_steps, pruned_ratio
from dipgo_deploy.search import DeepCacheOptions, SearchOptions, UniformOptions, schedule_by_rule
from tests.search.graphs import chain_like, contract_of, unet_like


def test_ages_count_the_steps_since_a_feature_was_computed() -> None:
    graph = unet_like()
    grid = read_grid(
        schedule_by_rule(graph, contract_of(graph, 6), SearchOptions("uniform", 0.5, settings=UniformOptions(3)))
    )
    assert grid.age.tolist() == [[0, 1, 2, 0, 1, 2]] * len(graph.blocks)
    assert (grid.state == np.array([COMPUTED, REUSED, REUSED] * 2)).all()
    assert grid.calls == 2 and grid.ratio is None and grid.kept.tolist() == [1, 0, 0, 1, 0, 0]


def test_blocks_before_a_reused_output_of_a_chain_are_dead() -> None:
    graph = chain_like()
    options = SearchOptions("deepcache", 0.5, settings=DeepCacheOptions(2, 1))
    schedule = schedule_by_rule(graph, contract_of(graph, 4), options)
    grid = read_grid(schedule, graph)
    assert grid.state[:, 1].tolist() == [DEAD, REUSED, REUSED, REUSED, REUSED, COMPUTED, COMPUTED]
    assert grid.kept[1] == pytest.approx((600 + 5 + 75) / 3700)
    assert grid.ratio == pytest.approx(pruned_ratio(schedule, graph))


def test_the_heading_lines_carry_the_key_figures() -> None:
    graph = unet_like()
    schedule = schedule_by_rule(graph, contract_of(graph, 20), SearchOptions("random", 0.6))
    grid = read_grid(schedule, graph)
    calls = sum(plan.is_call for plan in plan_steps(schedule, graph))
    assert origin_line(schedule, grid) == f"random, pruned ratio {pruned_ratio(schedule, graph):.3f} (requested 0.6)"
    assert sampler_line(schedule, grid) == f"DDIM, 20 steps, {calls} network calls; stage blocks, output reuse"
    unpriced = read_grid(schedule)
    assert origin_line(schedule, unpriced) == "random (requested 0.6)" and unpriced.calls >= calls
    assert heading_line(schedule, unpriced) == f"random (requested 0.6), recorded ratio {schedule.origin['reached']}"
    assert heading_line(schedule, grid) == origin_line(schedule, grid)
    assert f"at most {unpriced.calls} network calls" in sampler_line(schedule, unpriced)


def test_short_names_stay_distinct() -> None:
    assert short_names(("down_blocks.0.resnets.1", "mid_block", "prediction")) == [
        "down.0.resnets.1", "mid", "prediction",
    ]  # fmt: skip
    assert short_names(("a_blocks.0", "a_block.0")) == ["a_blocks.0", "a_block.0"]
    (long, _) = short_names(("transformer_blocks.0.norm1_context.linear_projection", "x"), 20)
    assert len(long) == 20 and long.startswith("…") and long.endswith("linear_projection")


def test_the_search_cost_is_named_under_either_key() -> None:
    graph = unet_like()
    schedule = schedule_by_rule(graph, contract_of(graph, 4), SearchOptions("uniform", 0.5))
    for key in ("search_cost", "spent"):
        made = replace(schedule, origin={"method": "evolutionary", "ratio": "0.5", key: "300.0"})
        line = "evolutionary (requested 0.5), search cost 300.0 trajectories"
        assert origin_line(made, read_grid(made)) == line

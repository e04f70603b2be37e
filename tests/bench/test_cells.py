"""States, ages and shares of a schedule's cells."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.bench.cells import COMPUTED, DEAD, REUSED, origin_line, read_cells, sampler_line, short_names
from dipgo_deploy.core.liveness import plan_steps, pruned_ratio
from dipgo_deploy.search import DeepCacheOptions, SearchOptions, UniformOptions, schedule_by_rule
from tests.search.graphs import chain_like, contract_of, unet_like


def test_ages_count_the_steps_since_a_feature_was_computed() -> None:
    graph = unet_like()
    cells = read_cells(
        schedule_by_rule(graph, contract_of(graph, 6), SearchOptions("uniform", 0.5, settings=UniformOptions(3)))
    )
    assert cells.age.tolist() == [[0, 1, 2, 0, 1, 2]] * len(graph.blocks)
    assert (cells.state == np.array([COMPUTED, REUSED, REUSED] * 2)).all()
    assert cells.calls == 2 and cells.ratio is None and cells.kept.tolist() == [1, 0, 0, 1, 0, 0]


def test_blocks_before_a_reused_output_of_a_chain_are_dead() -> None:
    graph = chain_like()
    options = SearchOptions("deepcache", 0.5, settings=DeepCacheOptions(2, 1))
    schedule = schedule_by_rule(graph, contract_of(graph, 4), options)
    cells = read_cells(schedule, graph)
    assert cells.state[:, 1].tolist() == [DEAD, REUSED, REUSED, REUSED, REUSED, COMPUTED, COMPUTED]
    assert cells.kept[1] == pytest.approx((600 + 5 + 75) / 3700)
    assert cells.ratio == pytest.approx(pruned_ratio(schedule, graph))


def test_the_heading_lines_carry_the_key_figures() -> None:
    graph = unet_like()
    schedule = schedule_by_rule(graph, contract_of(graph, 20), SearchOptions("random", 0.6))
    cells = read_cells(schedule, graph)
    calls = sum(plan.is_call for plan in plan_steps(schedule, graph))
    assert origin_line(schedule, cells) == f"random, pruned ratio {pruned_ratio(schedule, graph):.3f} (asked 0.6)"
    assert sampler_line(schedule, cells) == f"DDIM, 20 steps, {calls} network calls; stage blocks, output reuse"
    unpriced = read_cells(schedule)
    assert origin_line(schedule, unpriced) == "random (asked 0.6)" and unpriced.calls >= calls
    assert f"at most {unpriced.calls} network calls" in sampler_line(schedule, unpriced)


def test_short_names_stay_distinct() -> None:
    assert short_names(("down_blocks.0.resnets.1", "mid_block", "prediction")) == [
        "down.0.resnets.1", "mid", "prediction",
    ]  # fmt: skip
    assert short_names(("a_blocks.0", "a_block.0")) == ["a_blocks.0", "a_block.0"]
    (long, _) = short_names(("transformer_blocks.0.norm1_context.linear_projection", "x"), 20)
    assert len(long) == 20 and long.startswith("…") and long.endswith("linear_projection")

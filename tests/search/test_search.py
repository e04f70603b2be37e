"""Every rule: valid schedules, ratios near the asked ones, one-line refusals, settled by the seed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.liveness import plan_steps, pruned_ratio
from dipgo_deploy.core.schedule import Schedule, check_schedule
from dipgo_deploy.search import METHODS, RULES, TOLERANCE, SearchOptions, method_options, schedule_by_rule
from tests.search.graphs import chain_like, contract_of, unet_like

CASES = [(unet_like(), "output"), (chain_like(), "output"), (chain_like(), "residual")]


def search(
    graph: BlockGraph, steps: int, method: str, ratio: float, kind: Kind = "output", seed: int = 0, **knobs: int
) -> Schedule:
    options = SearchOptions(method, ratio, kind, seed, method_options(method, **knobs))
    return schedule_by_rule(graph, contract_of(graph, steps), options)


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize(("graph", "kind"), CASES, ids=["unet", "chain", "chain-residual"])
def test_every_method_gives_a_valid_schedule_with_a_full_first_step(
    graph: BlockGraph, kind: Kind, method: str, ratio: float
) -> None:
    schedule = search(graph, 50, method, ratio, kind)
    check_schedule(schedule, graph.block_names)
    assert schedule.computed[0] == set(graph.block_names) and schedule.steps == 50 and not schedule.forecasts
    assert schedule.origin["method"] == method and float(schedule.origin["ratio"]) == ratio
    assert float(schedule.origin["reached"]) == pytest.approx(pruned_ratio(schedule, graph), abs=1e-4)
    if method in ("uniform", "fora", "random"):
        assert abs(pruned_ratio(schedule, graph) - ratio) <= TOLERANCE


@pytest.mark.parametrize(("steps", "ratio", "calls"), [(50, 0.8, 10), (50, 0.9, 5), (20, 0.75, 5), (50, 0.7, 15)])
def test_uniform_makes_evenly_spread_calls_and_holds_the_prediction(steps: int, ratio: float, calls: int) -> None:
    graph = unet_like()
    plans = plan_steps(search(graph, steps, "uniform", ratio), graph)
    called = [plan.step for plan in plans if plan.is_call]
    gaps = {b - a for a, b in pairwise(called)}
    assert len(called) == calls and called[0] == 0 and max(gaps) - min(gaps) <= 1
    assert all(plan.reach.computes == set(graph.block_names) for plan in plans if plan.is_call)


@pytest.mark.parametrize(("steps", "calls"), [(50, 10), (50, 7), (6, 1), (6, 6)])
def test_uniform_makes_exactly_the_calls_that_are_asked_for(steps: int, calls: int) -> None:
    graph = unet_like()
    schedule = search(graph, steps, "uniform", 0.8, calls=calls)
    called = [step for step, computed in enumerate(schedule.computed) if computed]
    assert called == [i * steps // calls for i in range(calls)] and "ratio" not in schedule.origin
    assert schedule.origin["computed_steps"] == str(calls)
    assert schedule.origin["reached"] == f"{1 - calls / steps:.4f}"


def test_more_calls_than_the_sampler_makes_are_refused() -> None:
    with pytest.raises(UsageError, match="calls must be at most 6, the network calls of the full run, got 7"):
        search(unet_like(), 6, "uniform", 0.8, calls=7)


def test_fora_runs_only_the_tail_between_full_steps() -> None:
    graph = unet_like()
    plans = plan_steps(search(graph, 50, "fora", 0.78), graph)
    between = [plan for plan in plans if plan.step % 5]
    assert all(plan.reach.computes == {PREDICTION} and plan.reach.reads == {"up_blocks.3:0"} for plan in between)
    assert all(plan.reach.computes == set(graph.block_names) for plan in plans if plan.step % 5 == 0)


def test_fora_of_residuals_runs_stem_and_tail_and_reads_every_residual() -> None:
    graph = chain_like()
    plan = plan_steps(search(graph, 10, "fora", 0.5, "residual", interval=2), graph)[1]
    assert plan.reach.reads == {f"transformer_blocks.{i}:residual" for i in range(6)}
    assert graph.cost(graph.pieces[i] for i in plan.reach.pieces).papers == 20 + 5 + 75


def test_fora_mixes_spacings_where_no_interval_fits_and_stops_at_the_cost_of_its_tail() -> None:
    graph = unet_like()
    mixed = search(graph, 50, "fora", 0.25)
    assert mixed.origin["interval"] == "mixed" and abs(pruned_ratio(mixed, graph) - 0.25) <= TOLERANCE
    highest = search(graph, 50, "fora", 0.99)
    assert highest.origin["computed_steps"] == "1" and 0.95 < float(highest.origin["reached"]) < 0.98


def test_deepcache_computes_the_shallow_branch_between_full_steps() -> None:
    graph = unet_like()
    schedule = search(graph, 50, "deepcache", 0.2, interval=2, depth=1)
    shallow = plan_steps(schedule, graph)[1].reach
    assert shallow.computes == {"down_blocks.0", "up_blocks.3", PREDICTION} and shallow.reads == {"up_blocks.2:0"}


def test_deepcache_prefers_the_smallest_interval_that_meets_the_ratio() -> None:
    graph = unet_like()
    wanted = pruned_ratio(search(graph, 50, "deepcache", 0.5, interval=2, depth=2), graph)
    found = search(graph, 50, "deepcache", wanted)
    assert (found.origin["interval"], found.origin["depth"]) == ("2", "2")
    assert abs(pruned_ratio(found, graph) - wanted) <= TOLERANCE


def test_deepcache_on_a_chain_reuses_a_middle_range() -> None:
    graph = chain_like()
    plans = plan_steps(search(graph, 10, "deepcache", 0.5, interval=2, depth=2), graph)
    last = {"transformer_blocks.4", "transformer_blocks.5", PREDICTION}
    assert plans[1].reach.computes == last and plans[1].reach.reads == {"transformer_blocks.3:0"}
    plans = plan_steps(search(graph, 10, "deepcache", 0.5, "residual", interval=2, depth=2), graph)
    assert plans[1].reach.computes == last | {"transformer_blocks.0", "transformer_blocks.1"}
    assert plans[1].reach.reads == {"transformer_blocks.2:residual", "transformer_blocks.3:residual"}


def test_one_step_is_the_full_run() -> None:
    for method in RULES:
        assert search(unet_like(), 1, method, 0.5).origin["reached"] == "0.0000"


def test_random_is_settled_by_its_seed() -> None:
    graph = unet_like()
    first, again, other = (search(graph, 20, "random", 0.5, seed=seed) for seed in (3, 3, 4))
    assert first == again and first.origin == again.origin and first.compute != other.compute


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "magic", "ratio": 0.5}, "method 'magic' is unknown: choose uniform"),
        ({"method": "random", "ratio": 1.0}, r"ratio 1.0 is not in \[0, 1\)"),
        ({"method": "random", "ratio": -0.1}, r"ratio -0.1 is not in \[0, 1\)"),
        ({"method": "random", "ratio": float("nan")}, r"ratio nan is not in \[0, 1\)"),
        ({"method": "random", "ratio": 0.5, "kind": "both"}, "kind 'both' is unknown"),
        ({"method": "random", "ratio": 0.5, "seed": -1}, "seed must be at least 0, got -1"),
        ({"method": "random", "max_graphs": 0}, "max_graphs must be at least 1, got 0"),
        ({"method": "dpcache", "images": 0}, "images must be at least 1, got 0"),
        ({"method": "dpcache", "guidance_scale": -1.0}, "guidance_scale must be at least 0, got -1.0"),
        ({"method": "dpcache", "guidance_scale": float("nan")}, "guidance_scale must be at least 0, got nan"),
        ({"method": "random", "classes": (1,)}, "classes is for methods that run the model, not for random: leave it"),
        ({"method": "uniform", "prompts": ("a",)}, "prompts is for methods that run the model, not for uniform"),
        ({"method": "dpcache", "prompts": ("a",), "classes": (1,)}, "classes and prompts both say what images show"),
    ],
)
def test_options_refuse_what_makes_no_sense_in_one_line(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        SearchOptions(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in RULES])
def test_methods_that_run_the_model_are_no_rules(method: str) -> None:
    with pytest.raises(UsageError, match=f"method {method} needs a model: pass a model, or choose uniform"):
        search(unet_like(), 10, method, 0.5)


def test_search_refuses_knobs_and_kinds_that_do_not_fit_the_model() -> None:
    with pytest.raises(UsageError, match="depth 5 leaves none of 9 blocks in the middle: give at most 4"):
        search(unet_like(), 10, "deepcache", 0.5, depth=5)
    with pytest.raises(UsageError, match="trace at a finer granularity"):
        search(chain_like(2), 10, "deepcache", 0.5)
    with pytest.raises(InputError, match="no residual to reuse: choose kind output"):
        search(unet_like(), 10, "fora", 0.5, "residual")
    graph = unet_like()
    with pytest.raises(InputError, match=r"traced from model_digest ddd.*trace that model"):
        schedule_by_rule(graph, replace(contract_of(graph, 5), model_digest="e" * 64), SearchOptions("fora", 0.5))

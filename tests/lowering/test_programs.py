"""Programs mean what their schedules mean: random schedules of random graphs, run on NumPy slots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.liveness import plan_steps
from dipgo_deploy.core.program import Combine, Program, Sample
from dipgo_deploy.core.sampler import LinearSampler, OpaqueSampler, Update
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.lowering import LowerOptions, limit_graphs, lower
from dipgo_deploy.lowering.folding import reads_of, writes_of
from tests.lowering.cases import Case, cases, contract, made_up_sampler, random_graph, small
from tests.lowering.machine import TOLERANCE, distance, run_program
from tests.lowering.semantics import rollout
from tests.search.graphs import chain_like, unet_like

LAYOUTS = st.sampled_from(["subnets", "segments"])
MANY = settings(max_examples=150, deadline=None)


def image_of(program: Program, case: Case) -> np.ndarray:
    """Run ``program``; every read and write is compared with the rollout on the way."""
    moments = rollout(case.graph, case.schedule, case.sampler, case.noise, case.conditioning)
    image = run_program(program, case.graph, case.noise, case.conditioning, moments)
    assert distance(image, moments[-1].latent) < TOLERANCE
    return image


@MANY
@given(cases(), LAYOUTS, st.booleans())
def test_a_program_makes_the_image_of_its_schedule(case: Case, layout: str, share: bool) -> None:
    folded = lower(case.schedule, case.graph, case.sampler, LowerOptions(layout, share))
    unfolded = lower(case.schedule, case.graph, case.sampler, LowerOptions(layout, share, fold=False))
    assert distance(image_of(folded, case), image_of(unfolded, case)) < TOLERANCE
    assert len(folded.calls) <= len(unfolded.calls)
    assert [(run.graph, run.step) for run in folded.runs] == [(run.graph, run.step) for run in unfolded.runs]


@MANY
@given(cases(), LAYOUTS)
def test_a_step_calls_the_network_only_where_something_computed_is_used(case: Case, layout: str) -> None:
    program = lower(case.schedule, case.graph, case.sampler, LowerOptions(layout))
    calling = [plan.step for plan in plan_steps(case.schedule, case.graph) if plan.is_call]
    assert sorted({run.step for run in program.runs}) == calling and program.nfe == len(calling)
    if layout == "subnets":
        assert [run.step for run in program.runs] == calling
    steps = [call.step for call in program.calls]
    assert steps == sorted(steps)


@MANY
@given(cases(), LAYOUTS, st.booleans())
def test_nothing_dead_is_left(case: Case, layout: str, fold: bool) -> None:
    program = lower(case.schedule, case.graph, case.sampler, LowerOptions(layout, fold=fold))
    wanted = {program.image}
    for call in reversed(program.calls):
        assert wanted & {*writes_of(call)}, call
        wanted = wanted - {*writes_of(call)} | {*reads_of(call)}
    assert wanted <= {program.noise, *(slot for _, slot in program.conditioning)}
    assert {run.graph for run in program.runs} == {graph.name for graph in program.graphs}
    used = {slot for call in program.calls for slot in (*reads_of(call), *writes_of(call))}
    given_slots = {program.noise, *(slot for _, slot in program.conditioning)}
    assert {slot.name for slot in program.slots} == used | given_slots


@MANY
@given(cases(), LAYOUTS)
def test_samplers_become_combinations_or_their_own_steps(case: Case, layout: str) -> None:
    program = lower(case.schedule, case.graph, case.sampler, LowerOptions(layout))
    samples = [call.step for call in program.calls if isinstance(call, Sample)]
    assert samples == (list(range(case.schedule.steps)) if isinstance(case.sampler, OpaqueSampler) else [])


@MANY
@given(cases(), st.integers(1, 3))
def test_merged_graphs_compute_a_superset_and_keep_the_budget(case: Case, most: int) -> None:
    held = replace(case.schedule, forecasts={})
    merged = limit_graphs(held, case.graph, most)
    pairs = list(zip(case.schedule.computed, merged.computed, strict=True))
    assert all(before <= after for before, after in pairs)
    assert merged.origin["max_graphs"] == str(most)
    program = lower(merged, case.graph, case.sampler, LowerOptions(share_graphs=True))
    assert len(program.graphs) <= most
    image_of(program, Case(case.graph, merged, case.sampler, case.noise, case.conditioning))


@MANY
@given(cases(), st.integers(1, 3))
def test_no_forecast_comes_to_stand_on_other_steps(case: Case, most: int) -> None:
    try:
        merged = limit_graphs(case.schedule, case.graph, most)
    except UsageError as refusal:
        assert "changes the source steps of the forecast" in str(refusal) and case.schedule.forecasts
        return
    assert all(merged.sources(*key) == case.schedule.sources(*key) for key in merged.forecasts)


@pytest.mark.parametrize(("seed", "most"), [(104, 3), (542, 3)])
def test_the_budget_counts_steps_that_sharing_wakes(seed: int, most: int) -> None:
    """A shared graph writes more and may read more: a dead step's feature is wanted then, and the step calls."""
    rng = np.random.default_rng(seed)
    graph = random_graph(seed, int(rng.integers(2, 6)))
    rows = rng.random((int(rng.integers(3, 9)), len(graph.blocks))) < rng.random()
    rows[0] = True
    if rng.random() < 0.5:
        rows[1:, -1] &= (rng.random(len(rows)) < 0.5)[1:]
    kind = str(rng.choice(["output", "residual"]))
    compute = tuple(map(tuple, rows.tolist()))
    schedule = Schedule(contract(graph, len(rows), "none"), "stage", kind, graph.block_names, compute)
    sampler = made_up_sampler(len(rows), (1, 1), rng)
    program = lower(limit_graphs(schedule, graph, most), graph, sampler, LowerOptions(share_graphs=True))
    assert len(program.graphs) <= most


@MANY
@given(cases())
def test_sharing_changes_no_step(case: Case) -> None:
    """Steps with one compute row share a graph; the order of runs and their number stay."""
    shared = lower(case.schedule, case.graph, case.sampler, LowerOptions(share_graphs=True))
    by_row: dict[frozenset[str], set[str]] = {}
    for run in shared.runs:
        by_row.setdefault(case.schedule.computed[run.step], set()).add(run.graph)
    assert all(len(names) == 1 for names in by_row.values())


@pytest.mark.parametrize(("scale", "per_call"), [(1.0, 1), (0.5, 2)])
def test_steps_that_reuse_the_prediction_cost_one_combination_together(scale: float, per_call: int) -> None:
    """A sampler of memory 1+1: after each call the latent of the next one, and its scaled copy where scales differ."""
    graph = small(unet_like(2))
    bits = "1000010000"
    compute = tuple((bit == "1",) * len(graph.blocks) for bit in bits)
    schedule = Schedule(contract(graph, len(bits), "none"), "stage", "output", graph.block_names, compute)
    updates = (Update((0.9,), (0.1,)),) * len(bits)
    program = lower(schedule, graph, LinearSampler(1.0, (scale,) * len(bits), updates))
    assert [run.step for run in program.runs] == [0, 5]
    assert sum(isinstance(call, Combine) for call in program.calls) == 2 * per_call
    last = program.calls[-1]
    assert isinstance(last, Combine) and last.target == program.image
    weights = {term.slot: term.constant for term in last.terms}
    output = dict(program.runs[-1].outputs)["prediction"]
    assert weights[output] == pytest.approx(sum(0.1 * 0.9**k for k in range(5)))
    assert sorted(weights.values()) == pytest.approx(sorted([0.9**5, weights[output]]))


def test_unknown_layouts_and_empty_budgets_are_refused() -> None:
    graph = small(chain_like(2))
    schedule = full_schedule(contract(graph, 2, "none"), "stage", "output", graph.block_names)
    sampler = made_up_sampler(2, (1, 1), np.random.default_rng(0))
    with pytest.raises(UsageError, match="layout 'pieces' is unknown: choose subnets or segments"):
        lower(schedule, graph, sampler, LowerOptions("pieces"))
    with pytest.raises(UsageError, match="max_graphs must be at least 1, got 0"):
        limit_graphs(schedule, graph, 0)


@MANY
@given(cases(), LAYOUTS)
def test_a_program_lowered_again_with_its_own_options_is_the_same(case: Case, layout: str) -> None:
    """Half precision and image-to-image runs lower a bundle's schedule again, and need the graphs that it has."""
    for share in (False, True):
        program = lower(case.schedule, case.graph, case.sampler, LowerOptions(layout, share_graphs=share))
        assert program.share_graphs == share
        again = LowerOptions(program.layout, share_graphs=program.share_graphs)
        assert lower(case.schedule, case.graph, case.sampler, again) == program

"""Cuts of the reference models on ONNX Runtime give what the live model gives with the same blocks replaced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.sampler import LinearSampler, Update
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.graphs.cut import cut, cut_program, load_master
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.models.contracts import make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from tests.graphs.onnx_text import open_session, run_session
from tests.graphs.surgery import EVERY_TRACE, TRACES, deviation, example, record
from tests.search.graphs import stored_names

ROWS = 3
KINDS, LAYOUTS = ("output", "residual"), ("subnets", "segments")


def schedule_of(model, blocks: BlockGraph, kind: Kind) -> Schedule:
    """Three steps: all computed, a random SubNet that gives a prediction, one that reads features of both."""
    rng = np.random.default_rng(len(blocks.blocks))
    schedule = random_schedule(blocks, make_contract(model, steps=3), kind, rng, 0.5)
    return replace(schedule, compute=tuple((*row[:-1], True) for row in schedule.compute))


def lowered(schedule: Schedule, blocks: BlockGraph, layout: Layout) -> Program:
    sampler = LinearSampler(1.0, (1.0,) * 3, (Update((1.0,), (1.0,)),) * 3)
    return lower(schedule, blocks, sampler, LowerOptions(layout))


def noisy(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same features, plus noise of a tenth of their size: nothing that the cut would compute by itself."""
    rng = np.random.default_rng(3)
    return {k: v + (0.1 * v.std() * rng.standard_normal(v.shape)).astype(v.dtype) for k, v in features.items()}


def substitutes_of(schedule: Schedule, step: int, blocks: BlockGraph, stored: dict[str, np.ndarray]):
    """What stands in for every block that is not computed at ``step``, by stored name."""
    reused = set(blocks.block_names) - schedule.computed[step]
    return {name: stored[name] for block in reused for name in stored_names(blocks, block, schedule.kind)}


COVERING = {
    ("digits-unet", "stage", "output", "subnets"),
    ("digits-unet", "layer", "residual", "segments"),
    ("digits-unet", "branch", "output", "segments"),
    ("digits-dit", "stage", "residual", "subnets"),
    ("digits-dit", "branch", "output", "segments"),
}
"""Every trace once, and all pairs of model, kind and layout."""

CUTS = [
    pytest.param(*cell, marks=() if cell in COVERING else pytest.mark.slow)
    for cell in ((*traced, kind, layout) for traced in TRACES for kind in KINDS for layout in LAYOUTS)
]


@pytest.mark.parametrize(("name", "granularity", "kind", "layout"), CUTS)
def test_random_cuts_equal_the_live_model(name, granularity, kind, layout, reference_model, traced) -> None:
    """Each graph takes what graphs before it gave in this step, backups elsewhere; all it gives is compared."""
    model, made = reference_model(name), traced(name, granularity)
    schedule = schedule_of(model, made.blocks, kind)
    program = lowered(schedule, made.blocks, layout)
    graphs = cut_program(made.master, program, made.blocks)
    sessions = {key: open_session(content, made.folder) for key, content in graphs.items()}
    inputs = example(model, ROWS, seed=1)
    stored = noisy(record(model, made.blocks, example(model, ROWS, seed=2)))
    for step in range(schedule.steps):
        substitutes = substitutes_of(schedule, step, made.blocks, stored)
        expected = record(model, made.blocks, inputs, substitutes)
        values = {key: tensor.numpy() for key, tensor in inputs.items()} | expected | substitutes
        for graph in [program.graph_of_name[run.graph] for run in program.runs if run.step == step]:
            outputs = run_session(sessions[graph.name], values)
            assert tuple(outputs) == graph.writes
            values |= outputs
            wrong = {key for key in outputs.keys() & expected.keys() if deviation(outputs[key], expected[key]) > 2e-5}
            assert not wrong, f"{graph.name} at step {step}"
        assert deviation(values[PREDICTION], expected[PREDICTION]) < 2e-5


@EVERY_TRACE
def test_a_cut_holds_no_weights_and_no_more_than_it_needs(name, granularity, reference_model, traced) -> None:
    model, made = reference_model(name), traced(name, granularity)
    program = lowered(schedule_of(model, made.blocks, "output"), made.blocks, "subnets")
    master = onnx.load_model(made.master, load_external_data=False)
    for graph in program.graphs:
        content = cut(load_master(made.master), graph, made.blocks)
        part = onnx.load_model_from_string(content).graph
        assert [value.name for value in part.input] == [*graph.inputs, *graph.reads]
        assert [value.name for value in part.output] == list(graph.writes)
        assert all(value.type.tensor_type.shape.dim[0].dim_param == "rows" for value in (*part.input, *part.output))
        weights = {tensor.name for tensor in part.initializer}
        assert weights == {name for index in graph.pieces for name in made.blocks.pieces[index].weights}
        assert len(part.node) <= len(master.graph.node) and len(content) < made.master.stat().st_size * 1.01


def test_cutting_leaves_the_master_as_it_was(reference_model, traced) -> None:
    made = traced("digits-dit", "branch")
    program = lowered(schedule_of(reference_model("digits-dit"), made.blocks, "residual"), made.blocks, "subnets")
    master = load_master(made.master)
    once = [cut(master, graph, made.blocks) for graph in program.graphs]
    assert [cut(master, graph, made.blocks) for graph in program.graphs] == once


def test_graphs_that_do_not_fit_the_master_are_refused(reference_model, traced, tmp_path) -> None:
    made = traced("digits-dit", "stage")
    program = lowered(schedule_of(reference_model("digits-dit"), made.blocks, "output"), made.blocks, "subnets")
    whole, master = program.graphs[0], load_master(made.master)
    with pytest.raises(InputError, match=f"{whole.name} does not fit the traced graph .*nothing.*: trace the model"):
        cut(master, replace(whole, reads=("nothing:0",)), made.blocks)
    with pytest.raises(InputError, match=f"{whole.name} does not fit the traced graph"):
        cut(master, replace(whole, inputs=("timestep",)), made.blocks)
    with pytest.raises(InputError, match="does not exist: trace the model again"):
        load_master(tmp_path / "master.onnx")
    (tmp_path / "master.onnx").write_bytes(made.master.read_bytes()[:1000])
    with pytest.raises(InputError, match="is not a readable ONNX graph .*: trace the model again"):
        load_master(tmp_path / "master.onnx")

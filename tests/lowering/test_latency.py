"""The estimated time of a program, counted by hand, and the distances after which weights are lost."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from dipgo_deploy.core.program import Combine
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.lowering.latency import combine_features, lost_mib, predict_ms, reuse_distances, run_features
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from tests.lowering.cases import made_up_sampler
from tests.search.graphs import chain_like, contract_of, unet_like
from tests.search.tables import table_for

SAMPLER = made_up_sampler(6, (1, 1), np.random.default_rng(0))


def program_of(graph, layout="subnets", ratio=0.5, kind="output"):
    schedule = schedule_by_rule(graph, contract_of(graph, 6), SearchOptions("random", ratio, kind=kind, seed=3))
    return lower(schedule, graph, SAMPLER, LowerOptions(layout=layout))


@pytest.mark.parametrize("layout", ["subnets", "segments"])
@pytest.mark.parametrize(("make", "kind"), [(unet_like, "output"), (chain_like, "residual")])
def test_a_program_takes_the_sum_of_its_calls(layout, make, kind):
    graph = make()
    program, table = program_of(graph, layout, kind=kind), table_for(graph)
    sizes, slots = program.contract.sizes(8), {slot.name: slot for slot in program.slots}

    def mib(names):
        return sum(slots[name].nbytes(sizes) for name in names) / 2**20

    expected, last, touched = 0.0, {}, 0
    for call in program.calls:
        if isinstance(call, Combine):
            expected += 0.01 + 0.1 * mib([call.target, *(term.slot for term in call.terms)])
            continue
        own = program.graph_of_name[call.graph]
        expected += sum(table.pieces_ms[index] for index in own.pieces) + 0.05
        expected += 0.2 * mib([slot for _, slot in (*call.inputs, *call.outputs)])
        if touched - last.get(call.graph, -inf) > 4096:
            expected += 0.5 * own.weight_bytes / 2**20
        last[call.graph] = touched
        touched += own.weight_bytes
    assert predict_ms(program, graph, table) == pytest.approx(1.02 * expected)


def test_a_graph_that_follows_itself_finds_its_weights():
    graph = unet_like()
    program = program_of(graph, ratio=0.0)
    size = program.graphs[0].weight_bytes
    assert reuse_distances(program) == [inf] + [size] * 5
    assert lost_mib(program, size - 1).tolist() == [size / 2**20] * 6
    assert lost_mib(program, size).tolist() == [size / 2**20] + [0.0] * 5


def test_features_have_a_row_a_call():
    graph = unet_like()
    program = program_of(graph)
    runs, combines = run_features(program, graph, 8), combine_features(program, 8)
    assert runs.shape == (len(program.runs), len(graph.pieces) + 2)
    assert len(combines) == sum(isinstance(call, Combine) for call in program.calls)
    assert (np.diff(run_features(program, graph, 16)[:, -1] / runs[:, -1]) == 0).all()

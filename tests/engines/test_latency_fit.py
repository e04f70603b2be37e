"""A table's coefficients are found again from times that were made with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dipgo_deploy.core.program import Combine
from dipgo_deploy.engines.latency_fit import fit_latencies, latency_table
from dipgo_deploy.engines.options import ProfileOptions
from dipgo_deploy.engines.probes import probe_programs
from dipgo_deploy.lowering.latency import combine_features, lost_mib, predict_ms, run_features
from dipgo_deploy.models import make_contract
from tests.search.tables import table_for


@pytest.fixture(scope="module")
def made(digits_unet, traced):
    """Programs of the reference model with times that follow from a table exactly."""
    blocks = traced("digits-unet", "stage").blocks
    programs = probe_programs(blocks, make_contract(digits_unet, steps=12), ("subnets", "segments"), 0)
    rng = np.random.default_rng(0)
    pieces = rng.uniform(0.1, 2.0, len(blocks.pieces))
    cache = 3 * 2**20
    return blocks, [timed(program, blocks, pieces, cache) for program in programs]


def timed(program, blocks, pieces, cache):
    runs = run_features(program, blocks, 8) @ [*pieces, 0.05, 0.2] + 0.4 * lost_mib(program, cache)
    combines = combine_features(program, 8) @ [0.01, 0.1]
    queues = {True: iter(combines), False: iter(runs)}
    calls = tuple(float(next(queues[isinstance(call, Combine)])) for call in program.calls)
    return Timed(program, calls, 1.03 * sum(calls))


def test_exact_times_give_exact_predictions(made):
    blocks, programs = made
    table = latency_table(programs[:-1], blocks, ProfileOptions())
    full = programs[-1]
    assert predict_ms(full.program, blocks, table) == pytest.approx(full.whole_ms, rel=1e-3)
    assert table.spread < 1e-6
    assert table.forward_ms == pytest.approx(sum(table.prices_ms(blocks)) + table.call_ms)
    assert set(table.blocks_ms) == set(blocks.block_names)


def test_no_cost_is_negative_however_noisy_the_times(made):
    blocks, programs = made
    rng = np.random.default_rng(1)
    noisy = [replace(one, calls_ms=tuple(ms * rng.uniform(0.5, 2) for ms in one.calls_ms)) for one in programs]
    fit = fit_latencies(noisy, blocks, 8)
    assert min(*fit.pieces_ms, fit.call_ms, fit.border_ms_per_mib, fit.cold_ms_per_mib, fit.combine_ms) >= 0
    assert fit.spread > 0.05


def test_a_table_by_hand_serves_a_real_graph(made):
    blocks, programs = made
    assert predict_ms(programs[0].program, blocks, table_for(blocks)) > 0

"""The quick ratio is the ratio."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.search.cost import Pricer
from dipgo_deploy.search.random_schedules import random_schedule
from tests.search.graphs import chain_like, contract_of, unet_like
from tests.search.tables import table_for

CASES: list[tuple[BlockGraph, Kind]] = [(unet_like(), "output"), (chain_like(), "output"), (chain_like(), "residual")]
PRICERS = [Pricer(graph, kind) for graph, kind in CASES]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 12))
def test_pricer_agrees_with_the_definition(case: int, seed: int, keep: float, steps: int) -> None:
    graph, kind = CASES[case]
    schedule = random_schedule(graph, contract_of(graph, steps), kind, np.random.default_rng(seed), keep)
    assert PRICERS[case].ratio(schedule.computed) == pytest.approx(pruned_ratio(schedule, graph), abs=1e-12)


def test_a_tail_that_repeats_itself_does_not_live():
    unet, chain = unet_like(), chain_like()
    alone = frozenset([PREDICTION])
    assert Pricer(unet, "output").live(alone) == frozenset()
    assert Pricer(unet, "output").live(alone | {"up_blocks.3"}) == alone | {"up_blocks.3"}
    assert Pricer(chain, "output").live(alone) == alone  # modulated by the timestep
    assert Pricer(chain, "residual").live(alone) == alone


def test_with_a_latency_table_ratios_are_shares_of_time():
    graph = unet_like()
    everything = frozenset(graph.block_names)
    without = everything - {"mid_block"}
    table = table_for(graph, slow="mid_block")
    by_macs, by_time = Pricer(graph, "output"), Pricer(graph, "output", table)
    schedule = [everything, without]
    assert by_time.ratio(schedule) > 2 * by_macs.ratio(schedule) > 0
    prices = table.prices_ms(graph)
    full = sum(prices) + table.call_ms
    assert by_time.ratio([everything, frozenset()]) == pytest.approx(0.5)
    assert by_time.kept_share(everything) == pytest.approx(1)
    assert by_time.own_share("mid_block") == pytest.approx(table.blocks_ms["mid_block"] / full)

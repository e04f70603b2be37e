"""The quick ratio is the ratio."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.search import random_schedule
from dipgo_deploy.search.pricing import Pricer
from tests.search.graphs import chain_like, contract_of, unet_like

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

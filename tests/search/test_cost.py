"""Costs of gates against the prices of whole schedules."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.search.candidate import schedule_from_sets
from dipgo_deploy.search.cost import GateCost, Pricer
from tests.search.graphs import chain_like, contract_of, unet_like
from tests.search.tables import table_for

CASES = [(unet_like(), "output"), (chain_like(), "output"), (chain_like(), "residual")]
each = pytest.mark.parametrize(("graph", "kind"), CASES, ids=["unet", "chain", "residual"])


def cost_of(graph, kind, attribution="cascade") -> GateCost:
    return GateCost(Pricer(graph, kind), graph, attribution)


def random_mask(graph, steps: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((steps, len(graph.blocks))) < 0.6


def names_of(graph, row: np.ndarray) -> frozenset[str]:
    return frozenset(name for name, on in zip(graph.block_names, row, strict=True) if on)


@each
def test_a_cascade_is_what_a_schedule_saves_that_reuses_one_block(graph, kind) -> None:
    everything, weights = frozenset(graph.block_names), cost_of(graph, kind).weights(np.ones((2, len(graph.blocks))))
    for column, name in enumerate(graph.block_names):
        left = Pricer(graph, kind).live(everything - {name})
        schedule = schedule_from_sets(graph, contract_of(graph, 2), kind, [everything, left])
        assert weights[0, column] == weights[1, column] == pytest.approx(2 * pruned_ratio(schedule, graph))
    assert weights[0, -1] == pytest.approx(1.0)


def test_the_last_up_block_takes_all_that_only_feeds_it() -> None:
    graph = unet_like()
    weights = dict(zip(graph.block_names, cost_of(graph, "output").weights(np.ones((1, 10)))[0], strict=True))
    assert weights["up_blocks.3"] > 0.95 > weights["up_blocks.2"] > weights["up_blocks.1"] > weights["mid_block"]


@each
def test_a_marginal_cost_is_the_difference_of_the_steps_share(graph, kind) -> None:
    cost, mask = cost_of(graph, kind, "marginal"), random_mask(graph)
    weights = cost.weights(mask)
    for (step, column), weight in np.ndenumerate(weights):
        with_it, without = mask[step].copy(), mask[step].copy()
        with_it[column], without[column] = True, False
        shares = [cost.step_share(names_of(graph, row)) for row in (with_it, without)]
        assert weight == pytest.approx(shares[0] - shares[1]) and weight >= -1e-12


@each
def test_alive_is_what_the_steps_own_prediction_reads(graph, kind) -> None:
    cost, mask = cost_of(graph, kind), random_mask(graph)
    alive, weights = cost.alive(mask), cost_of(graph, kind, "marginal").weights(mask)
    closed = ~mask[:, -1]
    assert closed.any() and not alive[closed, :-1].any()
    # A U-Net's tail alone would give what is held; that of the chain reads the timestep.
    last_block = mask[:, -2] if graph.model_class.startswith("UNet") else np.ones(len(mask), dtype=bool)
    assert (alive[:, -1] == last_block).all() and alive[:, -1].any()
    assert (weights[~alive] == 0).all() and (weights[alive & (np.arange(len(graph.blocks)) > 0)] > 0).mean() > 0.5


def test_own_shares_and_equal_ones() -> None:
    graph, mask = chain_like(), np.ones((2, 7))
    own = cost_of(graph, "output", "own").weights(mask)
    assert own[0].tolist() == pytest.approx([600 / graph.macs.papers] * 6 + [0.0])
    assert (cost_of(graph, "output", "equal").weights(mask) == 1).all()


def test_with_a_latency_table_costs_are_shares_of_time() -> None:
    graph = chain_like(3)
    table = table_for(graph, slow="transformer_blocks.1", call_ms=0.0)
    cost = GateCost(Pricer(graph, "residual", table), graph, "cascade")
    everything, prices = frozenset(graph.block_names), table.prices_ms(graph)
    times, total = prices[2:5], sum(prices)
    assert cost.step_share(everything) == 1.0 and cost.step_share(everything - {PREDICTION}) == 0.0
    assert cost.step_share(everything - {"transformer_blocks.1"}) == pytest.approx(1 - times[1] / total)
    weights = cost.weights(np.ones((1, 4)))[0].tolist()
    assert weights == pytest.approx([*(ms / total for ms in times), 1.0])
    own = GateCost(Pricer(graph, "residual", table), graph, "own").weights(np.ones((1, 4)))[0].tolist()
    assert own == pytest.approx([table.blocks_ms[name] / total for name in graph.block_names])
    assert cost.kept([everything, frozenset(), everything, frozenset()]) == 0.5


def test_an_unknown_cost_is_refused() -> None:
    with pytest.raises(UsageError, match="cost 'weight' is unknown: choose cascade, marginal, own, equal"):
        cost_of(chain_like(), "output", "weight")

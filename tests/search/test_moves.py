from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from dipgo_deploy.search.cost import GateCost, Pricer
from dipgo_deploy.search.dipgo.moves import Moves
from tests.search.graphs import chain_like, unet_like

STEPS = 12
CASES = [(unet_like(), "output"), (chain_like(), "residual")]


def moves_of(graph, kind, ratio: float) -> Moves:
    return Moves(graph, GateCost(Pricer(graph, kind), graph, "marginal"), ratio)


def every_third(graph) -> np.ndarray:
    mask = np.zeros((STEPS, len(graph.blocks)), dtype=bool)
    mask[::3] = True
    return mask


@pytest.mark.parametrize(("graph", "kind"), CASES, ids=["unet", "chain"])
def test_no_neighbour_is_dearer_and_each_differs(graph, kind):
    moves, mask, rng = moves_of(graph, kind, 2 / 3), every_third(graph), np.random.default_rng(0)
    found = list(islice(moves.around(mask, rng.random(mask.shape), rng), 40))
    assert len(found) >= 10
    for trial in found:
        assert moves.fits(trial) and trial[0].all()
        assert (trial != mask).any()
        assert (moves.clean(trial) == trial).all()


@pytest.mark.parametrize(("graph", "kind"), CASES, ids=["unet", "chain"])
def test_the_first_move_opens_where_the_gain_is(graph, kind):
    moves, mask = moves_of(graph, kind, 2 / 3), every_third(graph)
    benefit = np.full(mask.shape, 1e-3)
    benefit[7, -1] = 100.0
    first = next(moves.around(mask, benefit, np.random.default_rng(0)))
    assert first[7, -1] and not mask[7, -1]


def test_costs_of_changes_are_differences_of_shares():
    graph, kind = CASES[0]
    cost = GateCost(Pricer(graph, kind), graph, "marginal")
    moves, mask = Moves(graph, cost, 0.5), every_third(graph)

    def share(row) -> float:
        return cost.step_share(frozenset(n for n, on in zip(graph.block_names, row, strict=True) if on))

    changes = moves.changes(mask, np.ones(mask.shape))
    assert {change.step for change in changes} == set(range(1, STEPS))
    for change in changes:
        assert change.cost == pytest.approx(share(change.row) - share(mask[change.step]))
    closing = [c for c in changes if c.step == 3 and not any(c.row)]
    assert len(closing) == 1 and closing[0].gain == -1.0 and closing[0].cost == pytest.approx(-1.0)


def test_where_nothing_can_be_spent_nothing_moves():
    graph, kind = CASES[0]
    mask = np.zeros((STEPS, len(graph.blocks)), dtype=bool)
    mask[0] = True
    moves = moves_of(graph, kind, 1 - 1 / STEPS)
    assert list(moves.around(mask, np.ones(mask.shape), np.random.default_rng(0))) == []

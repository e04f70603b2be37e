"""What a step without a call would gain by being computed."""

from __future__ import annotations

import pytest
import torch

from dipgo_deploy.supernet.chain import SoftChain
from tests.supernet.chains import GRAPH, LAST, STEPS, Tiny, contract, loss_of, run


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("recompute", ["none", "step"])
def test_what_a_closed_step_would_gain_is_the_one_sided_derivative(recompute, rows) -> None:
    """Two closed steps in a row after a partial one, and one at the end: none of them calls the network."""
    gates = torch.ones(STEPS + 1, len(GRAPH.blocks), dtype=torch.float64)
    live = torch.ones(gates.shape, dtype=torch.bool)
    closed = [2, 3, 5]
    gates[1, 1], gates[closed], live[closed, :LAST] = 0, 0, False
    chain = SoftChain(Tiny(), GRAPH, contract(steps=STEPS + 1), "residual", recompute)
    watched = gates.clone().requires_grad_()
    trajectory = run(chain, watched, live)
    assert chain.model.module.calls == 3
    loss_of(trajectory).backward()
    gains = trajectory.closed_gradients(rows)
    assert list(gains) == closed and (watched.grad[closed] == 0).all()
    with torch.no_grad():
        before = float(loss_of(run(chain, gates, live)))
        for step in closed:
            near = gates.clone()
            near[step], near[step, LAST] = 1, 1e-6
            assert gains[step] == pytest.approx((float(loss_of(run(chain, near, live))) - before) / 1e-6, rel=1e-4)


def test_a_closed_step_right_after_the_first_has_a_gain_too() -> None:
    gates, live = torch.zeros(2, len(GRAPH.blocks)), torch.zeros(2, len(GRAPH.blocks), dtype=torch.bool)
    chain = SoftChain(Tiny(), GRAPH, contract(steps=2), "output", "none")
    trajectory = run(chain, gates.requires_grad_(), live)
    loss_of(trajectory).backward()
    assert trajectory.closed_gradients()[1] != 0.0

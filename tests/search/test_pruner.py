"""The pruner begins by keeping everything, and its queries see each other only through attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.dipgo.pruner import Pruner, PrunerShape, spread_prior

SHAPE = (5, 3)


def pruner(encoder: str = "attention", seed: int = 0, prior: np.ndarray | None = None) -> Pruner:
    return Pruner(PrunerShape(*SHAPE, width=8, hidden=16, encoder=encoder), seed, prior)


@pytest.mark.parametrize("encoder", ["attention", "linear", "none"])
def test_it_starts_by_keeping_everything(encoder) -> None:
    votes = pruner(encoder)()
    assert votes.shape == SHAPE and torch.equal(votes, torch.ones(SHAPE))


@pytest.mark.parametrize(("encoder", "sees"), [("attention", True), ("linear", False), ("none", False)])
def test_queries_see_each_other_only_by_attention(encoder, sees) -> None:
    net = pruner(encoder)
    with torch.no_grad():
        net.second.normal_(generator=torch.Generator().manual_seed(1))
        before = net()
        net.queries[4] += torch.linspace(-1, 1, 8)
        changed = (net() - before).abs().flatten() > 1e-6
    assert changed[4]
    others = torch.cat([changed[:4], changed[5:]])
    assert others.all() if sees else not others.any()


def test_every_vote_has_a_gradient_of_its_own() -> None:
    net = pruner()
    net()[2, 1].backward()
    reached = net.second_bias.grad.abs().sum(dim=1).view(SHAPE) > 0
    assert reached[2, 1] and reached.sum() == 1


def test_its_seed_settles_it_and_the_global_one_is_left_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = pruner(seed=3), pruner(seed=3), pruner(seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.queries, other.queries)


def test_a_prior_is_added_to_the_first_votes() -> None:
    prior = spread_prior(*SHAPE, scale=2.0)
    assert torch.allclose(pruner(prior=prior)(), 1 + torch.tensor(prior, dtype=torch.float32))


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_the_first_steps_of_a_spread_prior_leave_even_gaps(steps: int) -> None:
    prior = spread_prior(steps, 3, 1.5)
    assert prior.shape == (steps, 3) and (prior == prior[:, :1]).all()
    assert prior[0, 0] == 1.5 and prior.min() == (0.0 if steps > 1 else 1.5)
    order = np.argsort(-prior[:, 0], kind="stable")
    for count in range(1, steps + 1):
        gaps = np.diff([*sorted(order[:count]), steps])
        assert gaps.max() <= 2 * gaps.min() + 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"hidden": -1}, "hidden must be at least 1, got -1"),
        ({"encoder": "mamba"}, "encoder 'mamba' is unknown: choose attention, linear, none"),
        ({"width": 30}, "width 30 is not a multiple of 4 attention heads: change width"),
    ],
)
def test_refusals(fields, message) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        PrunerShape(**{"steps": 2, "blocks": 3, **fields})
    assert "\n" not in str(caught.value)

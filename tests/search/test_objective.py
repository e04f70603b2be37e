"""The loss of hard gates and its gradient: what is dead has none, what is closed has what it would gain."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.search.cost import GateCost, Pricer
from dipgo_deploy.search.dipgo import objective as module
from dipgo_deploy.search.dipgo.objective import Objective
from dipgo_deploy.search.problem import Problem
from dipgo_deploy.supernet.memory import gradient_memory, measure_step
from tests.search.gradient import contract_for, options_of


@pytest.fixture
def parts(digits_unet, traced):
    graph = traced("digits-unet", "stage").blocks
    return digits_unet, graph, contract_for(digits_unet)


def objective_of(parts, **fields) -> Objective:
    return Objective(Problem(*parts, options_of(**{"loss": "l2", **fields})))


def partly(parts) -> np.ndarray:
    """Steps 2 and 4 closed, the outermost block reused at step 1, the middle one at step 3."""
    mask = np.ones((6, len(parts[1].blocks)), dtype=bool)
    mask[[2, 4]], mask[1, 0], mask[3, 3] = False, False, False
    return mask


def cost_of(parts) -> GateCost:
    return GateCost(Pricer(parts[1], "output"), parts[1], "marginal")


def test_open_gates_lose_nothing(parts) -> None:
    found = objective_of(parts)
    loss, gradient = found.gradient(np.ones((6, 8), dtype=bool), cost_of(parts), 0)
    assert loss == 0.0 and gradient.abs().max() < 1e-4
    assert found.search_cost == pytest.approx(1 + (3 * 5 + 1) / 6)  # one full run; step 0 forward, five there and back


def test_gradients_are_what_computing_more_brings(parts) -> None:
    """Opening a step whose benefit is predicted at all lowers the loss; steps are large, so only the sign is asked."""
    found, cost, mask = objective_of(parts), cost_of(parts), partly(parts)
    loss, gradient = found.gradient(mask, cost, 0)
    assert loss > 0 and gradient.shape == mask.shape
    assert found.search_cost == pytest.approx(1 + (2 + 3 * 3 + 1) / 6)
    assert (gradient[0] == 0).all() and (gradient[[2, 4], :-1] == 0).all()
    for step in (2, 4):
        opened = mask.copy()
        opened[step] = True
        assert gradient[step, -1] < 0 and found.gradient(opened, cost, 0)[0] < loss


def test_a_run_of_one_step_has_nothing_to_descend_by(parts) -> None:
    model, graph, _ = parts
    found = objective_of((model, graph, contract_for(model, steps=1)))
    loss, gradient = found.gradient(np.ones((1, 8), dtype=bool), cost_of(parts), 0)
    assert loss == 0.0 and (gradient == 0).all()


def test_batches_come_in_turn(parts) -> None:
    found = objective_of(parts, pool=2, batch=1)
    first, second = found.batch(0), found.batch(1)
    assert found.batch(2) is first and not np.array_equal(first.noise, second.noise) and found.search_cost == 2
    assert np.array_equal(objective_of(parts, pool=1, first_seed=10_000_001).batch(0).noise, second.noise)


def test_another_dtype_is_a_copy_and_agrees(parts) -> None:
    mask, cost = partly(parts), cost_of(parts)
    for loss in ("l2", "ssim"):
        plain, wide = (objective_of(parts, loss=loss, dtype=dtype) for dtype in (None, "float64"))
        assert plain.chain.model is parts[0] and wide.chain.model.dtype == "float64"
        narrow, exact = plain.gradient(mask, cost, 0), wide.gradient(mask, cost, 0)
        assert narrow[0] == pytest.approx(exact[0], rel=1e-3)
        assert (narrow[1] - exact[1]).abs().max() < 1e-2 * exact[1].abs().max()
    assert parts[0].dtype == "float32" and next(parts[0].module.parameters()).dtype.itemsize == 4


def test_what_is_computed_again_follows_from_half_of_the_free_memory(parts, monkeypatch) -> None:
    """Searches do not depend on it: neither gradients nor what is spent."""
    step, seen = measure_step(*parts, "output"), []
    need = {mode: gradient_memory(step, 6, 1, mode).peak_bytes for mode in ("none", "step", "block")}
    for mode, free in (("none", 2 * need["none"]), ("step", 2 * need["none"] - 2), ("block", 2 * need["step"] - 2)):
        monkeypatch.setattr(module, "free_bytes", lambda device, free=free: free)
        found = objective_of(parts)
        loss, gradient = found.gradient(partly(parts), cost_of(parts), 0)
        assert found.chain.recompute == mode
        seen.append((loss, found.search_cost, gradient.tolist()))
    assert seen[0] == seen[1] == seen[2]


def test_an_asked_mode_is_taken_as_it_is(parts, monkeypatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 0)
    assert [objective_of(parts, checkpoint=mode).chain.recompute for mode in ("none", "step")] == ["none", "step"]

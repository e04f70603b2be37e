"""Training: the same every time, from the full model down, and continued as if it had never stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.search.dipgo.threshold import sets_of
from tests.search.gradient import training_of

PENALTY = {"budget": "penalty", "loss": "ssim", "cost": "cascade", "learning_rate": 0.1}


@pytest.fixture
def parts(digits_unet, traced):
    return digits_unet, traced("digits-unet", "stage").blocks


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {**PENALTY, "optimiser": "adam", "encoder": "linear"},
        pytest.param(PENALTY, marks=pytest.mark.slow),
        pytest.param({"optimiser": "adam", "encoder": "linear"}, marks=pytest.mark.slow),
    ],
)
def test_training_is_settled_by_its_seed(parts, fields) -> None:
    first, again, other = (training_of(*parts, **fields, seed=seed) for seed in (0, 0, 1))
    notes = [list(training.run()) for training in (first, again)]
    assert (
        notes[0] == notes[1]
        and np.array_equal(first.scores(), again.scores())
        and first.search_cost == again.search_cost
    )
    list(other.run())
    assert not np.array_equal(first.scores(), other.scores())


def test_a_penalty_starts_at_the_full_model_and_prunes_until_the_floor(parts) -> None:
    training = training_of(*parts, **PENALTY, iterations=12, pool=1)
    start = training.scores()
    found = list(training.run())
    assert (start == start[0, 0]).all() and start[0, 0] == pytest.approx(1 / (1 + np.exp(-1.0)))
    first = {name: float(value) for name, value in (pair.split() for pair in found[0].text.split(", "))}
    assert first["loss"] == pytest.approx(0.0, abs=1e-6) and first["kept"] == pytest.approx(1.0)
    assert [i.done for i in found] == list(range(1, 13)) and {i.total for i in found} == {12}
    assert training.scores()[1:].mean() < start.mean() and training.seconds > 0


def test_below_the_floor_consistency_counts_alone(parts) -> None:
    training = training_of(*parts, **PENALTY, floor=0.3, sparsity_weight=2.0)
    logits, mask = torch.zeros(6, 8), np.ones((6, 8), dtype=bool)
    gradient, cost = torch.full((6, 8), 0.5), torch.ones(6, 8)
    above, below = (training._direction(gradient, cost, mask, kept, logits) for kept in (0.31, 0.3))
    assert torch.allclose(above, torch.full((6, 8), (0.5 + 2.0 / 48) / 4))
    assert torch.allclose(below, torch.full((6, 8), 0.5 / 4))


def test_a_projection_keeps_the_drawn_ratio_and_weighs_benefit_against_cost(parts) -> None:
    training = training_of(*parts, ratios=(0.5, 0.5))
    mask = training._mask(training.pruner())
    kept = training.cost.kept(sets_of(mask, training.graph, training.pricer))
    assert mask[0].all() and abs(kept - 0.5) < 0.05
    gradient, cost = -torch.ones(6, 8), torch.ones(6, 8)
    gradient[3, 2] = -5.0
    direction = training._direction(gradient, cost, mask, kept, torch.zeros(6, 8))
    assert direction[3, 2] < 0 and (direction[0] == 0).all()
    assert float(direction.square().mean().sqrt()) == pytest.approx(1.0)


def test_rates_fall_along_half_a_cosine(parts) -> None:
    training, rates = training_of(*parts, iterations=4, learning_rate=0.4), []
    for _ in training.run():
        rates.append(training.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.2 * (1 + np.cos(np.pi * i / 4)) for i in range(4)])


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_state_continues_as_if_nothing_had_happened(parts, optimiser) -> None:
    whole, first, second = (training_of(*parts, optimiser=optimiser, weight_decay=0.01) for _ in range(3))
    list(whole.run())
    first.step()
    first.step()
    second.restore(first.state(), first.done, first.search_cost, first.seconds)
    assert [i.done for i in second.run()] == [3, 4]
    # The full runs of both batches are made again.
    assert second.search_cost == pytest.approx(whole.search_cost + 2)
    assert np.array_equal(second.scores(), whole.scores())


def test_a_state_of_another_pruner_is_refused(parts) -> None:
    with pytest.raises(InputError, match=r"holds another pruner \(.*\): name another file") as caught:
        training_of(*parts).restore(training_of(*parts, width=16).state(), 0)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_stops_the_training(parts, monkeypatch) -> None:
    training = training_of(*parts)
    nothing = torch.zeros(training.pruner.shape.steps, training.pruner.shape.blocks)
    monkeypatch.setattr(training.objective, "gradient", lambda *_: (float("nan"), nothing))
    with pytest.raises(InputError, match="iteration 1 met a loss or gradient that is not finite"):
        training.step()
    assert training.done == 0

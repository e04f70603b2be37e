"""What a gradient search cannot be asked for."""

from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.dipgo.options import PRESETS, DipgoOptions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iterations": 0}, "iterations 0 makes no sense: give 1 or more"),
        ({"batch": -1}, "batch -1 makes no sense: give 1 or more"),
        ({"pool": 0}, "pool 0 makes no sense"),
        ({"polish_images": 0}, "polish_images 0 makes no sense"),
        ({"learning_rate": 0.0}, "learning_rate 0.0 is no positive number: give one"),
        ({"learning_rate": float("nan")}, "learning_rate nan is no positive number"),
        ({"clip": float("inf")}, "clip inf is no positive number"),
        ({"weight_decay": -0.1}, "weight_decay -0.1 makes no sense: give 0 or more"),
        ({"prior": float("nan")}, "prior nan makes no sense"),
        ({"polish": -1}, "polish -1 makes no sense"),
        ({"seed": -1}, "seed -1 makes no sense"),
        ({"ratios": (0.9, 0.5)}, r"ratios \(0.9, 0.5\) are no range in \[0, 1\): give the lowest and the highest"),
        ({"ratios": (0.5, 1.0)}, "are no range"),
        ({"floor": 1.0}, r"floor 1.0 is not in \[0, 1\): give the share of compute to stop at"),
        ({"optimiser": "lion"}, "optimiser 'lion' is unknown: choose sgd, adam"),
        ({"loss": "lpips"}, "loss 'lpips' is unknown: choose ssim, l1, l2, psnr"),
        ({"cost": "mine"}, "cost 'mine' is unknown: choose cascade, marginal, own, equal"),
        ({"unit": "s"}, "unit 's' is unknown: choose macs, ms"),
        ({"budget": "free"}, "budget 'free' is unknown: choose penalty, projection"),
        ({"encoder": "mlp"}, "encoder 'mlp' is unknown: choose attention, linear, none"),
        ({"checkpoint": "all"}, "checkpoint 'all' is unknown: choose auto, none, step, block"),
    ],
)
def test_refusals_are_one_line(fields, message) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        DipgoOptions(**fields)
    assert "\n" not in str(caught.value)


def test_the_paper_preset_is_the_papers() -> None:
    paper = PRESETS["paper"]
    assert (paper.iterations, paper.batch, paper.learning_rate, paper.weight_decay) == (1000, 1, 0.1, 1e-4)
    assert (paper.optimiser, paper.loss, paper.floor, paper.sparsity_weight) == ("sgd", "ssim", 0.2, 1.0)
    assert (paper.budget, paper.cost, paper.width, paper.polish) == ("penalty", "cascade", 512, 0)
    assert PRESETS["default"] == DipgoOptions()

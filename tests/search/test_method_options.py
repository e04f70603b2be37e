"""Options of the methods: what is refused, and how loose values become options."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search import METHODS, DipgoOptions, EvolutionOptions, SearchOptions, UniformOptions, method_options
from dipgo_deploy.search.dipgo.options import PRESETS
from dipgo_deploy.search.method_options import MethodOptions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"batch": -1}, "batch must be at least 1, got -1"),
        ({"pool": 0}, "pool must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number, got nan"),
        ({"clip": float("inf")}, "clip must be a positive number, got inf"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"prior": float("nan")}, "prior must be at least 0, got nan"),
        ({"polish": -1}, "polish must be at least 0, got -1"),
        ({"first_seed": -1}, "first_seed must be at least 0, got -1"),
        ({"ratios": (0.9, 0.5)}, r"ratios \(0.9, 0.5\) are not a range in \[0, 1\): give the lowest and the highest"),
        ({"ratios": (0.5, 1.0)}, "are not a range"),
        ({"floor": 1.0}, r"floor 1.0 is not in \[0, 1\): give the share of compute to stop at"),
        ({"optimiser": "lion"}, "optimiser 'lion' is unknown: choose sgd, adam"),
        ({"loss": "lpips"}, "loss 'lpips' is unknown: choose ssim, l1, l2, psnr"),
        ({"cost": "mine"}, "cost 'mine' is unknown: choose cascade, marginal, own, equal"),
        ({"order": "best"}, "order 'best' is unknown: choose bisection, greedy"),
        ({"pruner": Path("a"), "from_pruner": Path("b")}, "give one of them"),
        ({"from_pruner": Path("b"), "width": 16}, "width belongs to training, but from_pruner names a trained pruner"),
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


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_options_and_a_function(name: str) -> None:
    method, options = METHODS[name], SearchOptions(name)
    assert issubclass(method.options, MethodOptions) and callable(method.load())
    assert type(options.settings) is method.options and options.settings_as(method.options) is options.settings
    assert method_options(name) == (method.presets or {"default": method.options()})["default"]


def test_loose_values_become_options() -> None:
    assert method_options("uniform", interval=None, calls=3) == UniformOptions(calls=3)
    paper = method_options("dipgo", "paper", iterations=3, depth=None)
    assert isinstance(paper, DipgoOptions) and (paper.iterations, paper.width) == (3, 512)
    assert method_options("evolutionary", population=8) == EvolutionOptions(population=8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["magic"], {}, "method 'magic' is unknown: choose uniform, deepcache"),
        (["random"], {"interval": 2}, "interval does not belong to method random: leave it out, or choose uniform or"),
        (["fora"], {"depth": 2}, "depth does not belong to method fora: leave it out, or choose deepcache$"),
        (["fora"], {"nonsense": 2}, "nonsense does not belong to method fora: leave it out$"),
        (["uniform", "paper"], {}, "preset does not belong to method uniform: leave it out, or choose dipgo"),
        (["dipgo", "mine"], {}, "preset 'mine' is unknown: choose default, paper, paper-dit"),
        (["dipgo", "paper"], {"from_pruner": Path("p")}, "preset belongs to training"),
        (["uniform"], {"calls": 0}, "calls must be at least 1, got 0"),
        (["uniform"], {"calls": 3, "interval": 2}, "interval and calls both choose the computed steps"),
        (["evolutionary"], {"population": 3}, "population must be at least 4, got 3"),
        (["evolutionary"], {"trajectories": 0}, "trajectories must be at least 1, got 0"),
        (["best-random"], {"candidates": 0}, "candidates must be at least 1, got 0"),
        (["fora"], {"interval": 0}, "interval must be at least 1, got 0"),
        (["deepcache"], {"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_loose_values_that_do_not_fit_are_refused(arguments, options, message) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        method_options(*arguments, **options)
    assert "\n" not in str(caught.value)

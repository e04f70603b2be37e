from __future__ import annotations

import pytest

from dipgo_deploy.core.progress import Progress
from dipgo_deploy.models import make_contract
from dipgo_deploy.search import SearchOptions, method_options, schedule_by_rule, search
from dipgo_deploy.search.options import METHODS, NOTE
from dipgo_deploy.search.reachable import highest_ratio, out_of_reach, ratio_of, unmet_ratio
from tests.search.graphs import contract_of, unet_like

GRAPH, STEPS = unet_like(), 10
SEEKING_A_RATIO = [name for name, method in METHODS.items() if not method.options().decides_ratio]
"""All methods but those that are given a number of calls, which are tried in tests/search/fit."""


def options_of(method: str, ratio: float, **settings: int) -> SearchOptions:
    return SearchOptions(method, ratio, settings=method_options(method, **settings))


@pytest.mark.parametrize("method", SEEKING_A_RATIO)
def test_the_range_of_every_method_is_named_where_the_ratio_lies_outside(method: str) -> None:
    wanted = options_of(method, 0.999)
    highest = highest_ratio(GRAPH, STEPS, wanted)
    assert 0.3 < highest <= 0.9
    assert f"{method} reaches 0 to {highest:.4f} with 10 steps" in out_of_reach(GRAPH, STEPS, wanted)
    assert out_of_reach(GRAPH, STEPS, options_of(method, highest)) == ""


@pytest.mark.parametrize(
    ("method", "ratio"), [("uniform", 0.999), ("deepcache", 0.95), ("fora", 0.03), ("random", 0.97)]
)
def test_a_rule_that_misses_its_ratio_says_what_it_reaches(method: str, ratio: float) -> None:
    wanted = options_of(method, ratio)
    schedule = schedule_by_rule(GRAPH, contract_of(GRAPH, STEPS), wanted)
    warning = unmet_ratio(schedule, GRAPH, wanted)
    assert f"the ratio is {ratio_of(schedule, GRAPH, wanted):.4f}, but {ratio:g} was requested" in warning
    assert f"{method} reaches 0 to " in warning and "with 10 steps" in warning


def test_options_that_fix_the_steps_are_not_warned_of() -> None:
    assert set(METHODS) - set(SEEKING_A_RATIO) == {"fit", "learned"}
    assert all(out_of_reach(GRAPH, STEPS, options_of(name, 0.999)) == "" for name in ("fit", "learned"))
    wanted = options_of("uniform", 0.1, interval=5)
    assert unmet_ratio(schedule_by_rule(GRAPH, contract_of(GRAPH, STEPS), wanted), GRAPH, wanted) == ""
    assert out_of_reach(GRAPH, STEPS, options_of("uniform", 0.99, calls=1)) == ""


def test_a_method_that_runs_the_model_says_so_before_the_work(digits_unet, traced) -> None:
    graph = traced("digits-unet", "stage").blocks
    work = search(digits_unet, make_contract(digits_unet, steps=6), SearchOptions("best-random", 0.99), blocks=graph)
    warning = "warning: a ratio of 0.99 is requested, but best-random reaches 0 to 0.8333 with 6 steps"
    assert next(work) == Progress(NOTE, 0, 1, warning)

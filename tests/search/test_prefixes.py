"""Runs that begin where an earlier one agrees: the same images bit for bit, for fewer steps."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.search.calibration import calibrate
from dipgo_deploy.search.evaluator import Evaluator
from tests.search.gradient import contract_for

CASES = [("digits_unet", "digits-unet", "output"), ("digits_dit", "digits-dit", "residual")]
each = pytest.mark.parametrize(("fixture", "name", "kind"), CASES, ids=["unet", "dit"])


@pytest.fixture
def made(request, traced):
    """Two evaluators of one calibration: one that keeps states, one that does not."""

    def make(fixture: str, name: str, kind: str, states: int = 12, **knobs):
        model, graph = request.getfixturevalue(fixture), traced(name, "stage").blocks
        given = calibrate(model, graph, contract_for(model, **knobs), range(2))
        return Evaluator(given, graph, kind, states), Evaluator(given, graph, kind)

    return make


def schedules(names):
    """Six steps each: a base, then what differs from it late, in the middle, at once; partial steps are among them."""
    full, none, part = frozenset(names), frozenset(), frozenset([names[0], names[-2], PREDICTION])
    base = [full, none, part, full, none, full]
    return base, [[*base[:5], part], [*base[:3], none, full, none], [full, part, none, full, none, full], base]


@each
def test_the_same_values_for_less(made, fixture, name, kind) -> None:
    quick, plain = made(fixture, name, kind)
    base, others = schedules(quick.graph.block_names)
    quick.psnr_db(base), plain.psnr_db(base)
    assert quick.search_cost == plain.search_cost
    quick.settle()
    saved = []
    for other in others:
        before = quick.search_cost, plain.search_cost
        assert np.array_equal(quick.psnr_db(other), plain.psnr_db(other))
        saved.append((plain.search_cost - before[1]) - (quick.search_cost - before[0]))
    assert saved[0] > saved[1] > saved[2] > 0 == saved[3]


@each
def test_the_base_is_what_was_settled_not_what_ran_last(made, fixture, name, kind) -> None:
    quick, plain = made(fixture, name, kind)
    base, (late, middle, early, _) = schedules(quick.graph.block_names)
    quick.psnr_db(base)
    quick.settle()
    for other in (early, middle, late):
        assert np.array_equal(quick.psnr_db(other), plain.psnr_db(other))
    share = quick.pricer.kept(late, 4)
    before = quick.search_cost
    quick._known.clear()
    quick.psnr_db(late)
    assert quick.search_cost == pytest.approx(before + 2 * share)


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "euler-a"])
def test_samplers_with_memory_or_noise_go_on_as_they_would(made, sampler) -> None:
    quick, plain = made("digits_unet", "digits-unet", "output", states=2, sampler=sampler)
    base, others = schedules(quick.graph.block_names)
    quick.psnr_db(base)
    quick.settle()
    assert all(np.array_equal(quick.psnr_db(other), plain.psnr_db(other)) for other in others)
    assert len(quick._prefixes._base) == 2


def test_without_states_every_run_is_whole(made) -> None:
    _, plain = made("digits_unet", "digits-unet", "output")
    base, (late, *_) = schedules(plain.graph.block_names)
    plain.psnr_db(base)
    plain.settle()
    before = plain.search_cost
    plain.psnr_db(late)
    assert plain.search_cost == pytest.approx(before + 2 * plain.pricer.kept(late)) and not plain._prefixes._base

"""Images that searches evaluator by."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.search.calibration import calibrate, images_of
from dipgo_deploy.search.evaluator import Evaluator
from tests.search.gradient import contract_for


def test_images_are_the_full_runs_and_classes_take_turns(digits_unet, traced) -> None:
    graph, contract = traced("digits-unet", "stage").blocks, contract_for(digits_unet, guidance="concat")
    found = calibrate(digits_unet, graph, contract, range(2, 5), classes=(7, 3))
    assert found.count == 3 and found.images.shape == (3, *contract.latent_shape) and found.guidance_scale == 2.0
    labels = digits_unet.conditioning([7, 3, 7], "concat")
    assert all(np.array_equal(found.conditioning[name], rows) for name, rows in labels.items())
    full = full_schedule(contract, "stage", "output", graph.block_names)
    assert np.array_equal(images_of(found, full), found.images)
    alone = calibrate(digits_unet, graph, contract, [3], classes=(3,), guidance_scale=2.0)
    assert np.abs(alone.images[0] - found.images[1]).max() < 1e-4


def test_a_class_that_the_model_lacks_is_refused(digits_unet, traced) -> None:
    with pytest.raises(UsageError, match="class labels must lie between 0 and 9, got"):
        calibrate(digits_unet, traced("digits-unet", "stage").blocks, contract_for(digits_unet), [0], classes=(10,))


def test_a_judge_counts_and_remembers(digits_unet, traced) -> None:
    graph, contract = traced("digits-unet", "stage").blocks, contract_for(digits_unet)
    evaluator, full = (
        Evaluator(calibrate(digits_unet, graph, contract, range(2)), graph, "output"),
        frozenset(graph.block_names),
    )
    assert evaluator.search_cost == 2 and evaluator.score([full] * 6) == 120 and evaluator.search_cost == 4
    halves, thirds = [full, frozenset()] * 3, [full, frozenset(), frozenset()] * 2
    assert 10 < evaluator.score(thirds) < evaluator.score(halves) < 60
    assert evaluator.search_cost == pytest.approx(4 + 2 * (1 / 2 + 1 / 3))
    before = evaluator.search_cost
    values = evaluator.psnr_db(halves)
    assert (
        evaluator.search_cost == before
        and values.shape == (2,)
        and evaluator.score(halves) == pytest.approx(values.mean())
    )
    error = images_of(
        evaluator.calibration, full_schedule(contract, "stage", "output", graph.block_names).with_compute(halves)
    )
    mse = ((error.astype(np.float64) - evaluator.calibration.images) ** 2).mean(axis=(1, 2, 3))
    assert values == pytest.approx(10 * np.log10(4 / mse))

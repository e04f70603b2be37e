from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.core.metrics import PSNR_CAP_DB, median_interval, percentiles, psnr_db, psnr_text


def test_psnr_of_a_known_error():
    reference = np.zeros((2, 1, 4, 4))
    found = np.stack([np.full((1, 4, 4), 0.2), np.full((1, 4, 4), -0.02)])
    # 0.2 of [-1, 1] is 0.1 of [0, 1]: a mean squared error of 1e-2, and 1e-4.
    assert psnr_db(found, reference) == pytest.approx([20.0, 40.0])


def test_psnr_of_identical_images_is_capped():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 16, 16))
    assert psnr_db(images, images).tolist() == [PSNR_CAP_DB] * 3


def test_equal_images_are_called_identical():
    assert (psnr_text(PSNR_CAP_DB), psnr_text(35.54), psnr_text(35.54, "")) == ("identical", "35.5 dB", "35.5")


def test_what_lies_outside_the_range_is_clipped_before_it_is_compared():
    assert psnr_db(np.full((1, 1, 4, 4), 7.0), np.ones((1, 1, 4, 4))) == [PSNR_CAP_DB]


def test_latents_are_compared_without_clipping():
    # 6 of [-1, 1] is 3 of [0, 1]: a mean squared error of 9.
    assert psnr_db(np.full((1, 1, 4, 4), 7.0), np.ones((1, 1, 4, 4)), clip=False) == pytest.approx(-10 * np.log10(9))
    same = np.full((1, 1, 4, 4), 7.0)
    assert psnr_db(same, same, clip=False) == [PSNR_CAP_DB]


def test_percentiles_lie_between_neighbours():
    assert percentiles([4.0, 0.0, 1.0, 2.0, 3.0], 10, 50, 90) == pytest.approx({"p10": 0.4, "p50": 2.0, "p90": 3.6})


def test_the_interval_of_a_median_covers_it_and_shrinks_with_images():
    draws = np.random.default_rng(1).normal(35.0, 2.0, (200, 64))
    found = [median_interval(values) for values in draws]
    covered = [one["p50_low"] <= 35.0 <= one["p50_high"] for one in found]
    assert 0.9 <= np.mean(covered) <= 0.99
    few, many = (median_interval(draws.reshape(-1)[:count]) for count in (16, 1600))
    assert many["p50_high"] - many["p50_low"] < 0.2 * (few["p50_high"] - few["p50_low"])


def test_the_interval_is_the_same_for_the_same_images_and_nothing_for_equal_ones():
    values = np.random.default_rng(0).normal(size=32)
    assert median_interval(values) == median_interval(list(values)) != median_interval(values, seed=1)
    assert median_interval([120.0] * 8) == {"p50_low": 120.0, "p50_high": 120.0}

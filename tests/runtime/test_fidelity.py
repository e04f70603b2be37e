from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.runtime.fidelity import PSNR_CAP_DB, psnr_db


def test_psnr_of_a_known_error():
    reference = np.zeros((2, 1, 4, 4))
    found = np.stack([np.full((1, 4, 4), 0.2), np.full((1, 4, 4), -0.02)])
    # 0.2 of [-1, 1] is 0.1 of [0, 1]: a mean squared error of 1e-2, and 1e-4.
    assert psnr_db(found, reference) == pytest.approx([20.0, 40.0])


def test_psnr_of_identical_images_is_capped():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 1, 16, 16))
    assert psnr_db(images, images).tolist() == [PSNR_CAP_DB] * 3


def test_what_lies_outside_the_range_is_clipped_before_it_is_compared():
    assert psnr_db(np.full((1, 1, 4, 4), 7.0), np.ones((1, 1, 4, 4))) == [PSNR_CAP_DB]

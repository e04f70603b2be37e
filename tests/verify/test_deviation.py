from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.verify.deviation import relative_difference


def test_relative_difference_sees_single_elements_and_non_finite_ones() -> None:
    reference = np.array([1.0, -4.0, 2.0])
    assert relative_difference(np.array([1.0, -4.0, 2.4]), reference) == pytest.approx(0.1)
    assert relative_difference(np.array([1.5, -4.5, 2.0]), reference) == pytest.approx(0.125)
    assert relative_difference(np.array([np.nan, -4.0, 2.0]), reference) == float("inf")

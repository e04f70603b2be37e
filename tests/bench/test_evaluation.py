from __future__ import annotations

import numpy as np
import pytest
import torch

from dipgo_deploy.bench.evaluation import DigitsEvaluator, digits_evaluator, ssim


def images(count: int, side: int = 16, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, channels, side, side)).astype(np.float32)


@pytest.mark.parametrize("side", [4, 5, 8, 11, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_of_identical_images_is_one_at_any_size(side: int, channels: int):
    same = images(2, side, channels)
    assert ssim(same, same) == pytest.approx([1.0, 1.0])


def test_ssim_of_flat_images_is_its_luminance_term():
    first, second = np.zeros((1, 1, 16, 16)), np.full((1, 1, 16, 16), 0.5)  # 0.5 and 0.75 on [0, 1]
    constant = 0.01**2
    wanted = (2 * 0.5 * 0.75 + constant) / (0.5**2 + 0.75**2 + constant)
    assert ssim(first, second) == pytest.approx([wanted], rel=1e-6)


def test_ssim_is_one_value_an_image():
    noisy = images(3)
    noisy[1] = -noisy[1]
    values = ssim(noisy, images(3))
    assert values.shape == (3,)
    assert values[1] < 0.5 and values[[0, 2]] == pytest.approx([1.0, 1.0])


class FakeClassifier:
    """Two features of an image: its first two pixels."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2]


def test_frechet_of_two_gaussians(monkeypatch):
    """Diagonal covariances: the squared shift plus the sum of (s1 - s2) ** 2."""
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    real, drawn = torch.zeros(4, 1, 16, 16), np.zeros((4, 1, 16, 16), np.float32)
    real.flatten(1)[:, :2] = corners * torch.tensor([0.3, 0.6])
    drawn.reshape(4, -1)[:, :2] = corners.numpy() * [0.6, 0.3] + [0.1, 0.2]
    monkeypatch.setattr(DigitsEvaluator, "_real", lambda self, first, count: real[first : first + count])
    unit = np.sqrt(4 / 3)  # standard deviation of the corners with n - 1
    wanted = 0.1**2 + 0.2**2 + 2 * (0.3 * unit) ** 2
    assert DigitsEvaluator(FakeClassifier()).frechet(drawn) == pytest.approx(wanted, rel=1e-5)


def test_the_evaluator_knows_real_digits():
    from dipgo_deploy.models.digits import load_split

    evaluator, digits = digits_evaluator((1, 16, 16), 10), load_split("test")
    real, labels = digits.images.numpy(), digits.labels.tolist()
    assert evaluator.accuracy(real, labels) > 0.95
    assert evaluator.floor(300) < evaluator.frechet(real[:300] * 0.2)
    assert evaluator.frechet(load_split("all").images[:64].numpy()) == pytest.approx(0.0, abs=1e-2)


def test_the_evaluator_is_silent_where_it_cannot_evaluate():
    evaluator = digits_evaluator((1, 16, 16), 10)
    assert evaluator.frechet(images(1)) is None
    assert evaluator.floor(1000) is None  # two thousand digits are not there
    assert digits_evaluator((4, 64, 64), 1000) is None
    assert digits_evaluator((1, 16, 16), None) is None

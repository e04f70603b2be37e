"""Consistency losses: 0 and flat for equal images, known values elsewhere, SSIM as bench measures it."""

from __future__ import annotations

import pytest
import torch

from dipgo_deploy.bench.evaluation import ssim
from dipgo_deploy.search.dipgo.losses import CONSISTENCY, ssim_of


def images(seed: int, size: int = 16) -> torch.Tensor:
    return torch.rand(3, 2, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", CONSISTENCY)
def test_equal_images_lose_nothing_and_others_something(name) -> None:
    full, other = images(0), images(1).requires_grad_()
    same = full.clone().requires_grad_()
    loss = CONSISTENCY[name](same, full)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6 and torch.isfinite(same.grad).all()
    far = CONSISTENCY[name](other, full)
    far.backward()
    assert float(far.detach()) > 0.1 and float(other.grad.abs().max()) > 0
    near = CONSISTENCY[name](full + 0.1 * (images(1) - full), full)
    assert 0 < float(near) < float(far.detach())


@pytest.mark.parametrize("size", [8, 16])
def test_ssim_is_the_one_that_bench_reports(size) -> None:
    full, other = images(0, size), images(2, size)
    found = 1 - CONSISTENCY["ssim"](other, full)
    assert float(found) == pytest.approx(float(ssim(other.numpy(), full.numpy()).mean()), abs=1e-5)
    assert ssim_of(full, full, 2.0).tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_ssim_of_flat_images_is_that_of_their_means() -> None:
    """Variances are 0, and only the comparison of brightness is left: (2ab + C) / (a^2 + b^2 + C)."""
    a, b, constant = 0.5, 0.8, 0.01**2
    flat = [torch.full((1, 1, 16, 16), value, dtype=torch.float64) for value in (a, b)]
    expected = (2 * a * b + constant) / (a**2 + b**2 + constant)
    assert float(ssim_of(*flat, data_range=1.0)) == pytest.approx(expected, rel=1e-9)


def test_values_of_the_simple_losses() -> None:
    full = torch.zeros(2, 1, 4, 4)
    assert float(CONSISTENCY["l1"](full - 0.5, full)) == 0.5
    assert float(CONSISTENCY["l2"](full - 0.5, full)) == 0.25
    one = full.clone()
    one[0] = 9e-6**0.5
    assert float(CONSISTENCY["psnr"](one, full)) == pytest.approx(0.5)  # a decade for one of two images

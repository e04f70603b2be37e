"""The split and the augmentation are fixed by their seeds; the measures mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.digits import CLASSES, frechet_distance, load_split
from examples.digits.denoisers import load_denoiser
from examples.digits.evaluate import psnr, save_grid
from examples.digits.train import augment


def test_split_is_whole_and_every_class_is_in_both_parts() -> None:
    train, test, whole = (load_split(name) for name in ("train", "test", "all"))
    assert len(train.labels) == 1437 and len(test.labels) == 360
    assert torch.equal(torch.cat([test.images, train.images]), whole.images)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(CLASSES))
    assert whole.images.shape == (1797, 1, 16, 16)
    assert whole.images.min() == -1 and whole.images.max() <= 1


def test_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="'validation'"):
        load_split("validation")


def test_augmentation_is_fixed_by_the_generator_and_keeps_the_range() -> None:
    images = load_split("test").images[:8]
    first, second = (augment(images, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, images)
    assert first.min() >= -1 and first.max() <= 1
    still = augment(images, torch.Generator(), shift=0, scale=0, turn=0)
    assert (still - images).abs().max() < 1e-5


def test_psnr_of_a_known_difference() -> None:
    reference = torch.zeros(2, 1, 4, 4)
    assert psnr(reference + 0.2, reference).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_frechet_distance_is_zero_on_itself_and_the_squared_shift_on_a_moved_copy() -> None:
    features = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2.0) == pytest.approx(12, abs=1e-4)
    assert frechet_distance(features, features * 2) == pytest.approx(
        float(features.double().T.cov().trace() + features.double().mean(0).square().sum()), rel=1e-6
    )


def test_grid_has_ten_columns(tmp_path: Path) -> None:
    save_grid(-torch.ones(20, 1, 16, 16), tmp_path / "grid.png", zoom=1, gap=1)
    picture = Image.open(tmp_path / "grid.png")
    assert picture.size == (180, 36) and picture.getextrema() == (255, 255)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_index.json is missing"):
        load_denoiser(tmp_path)

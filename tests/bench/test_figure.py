from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dipgo_deploy.bench.figure import image_grid
from dipgo_deploy.core.errors import UsageError


def test_image_grid_scales_pixels_and_clips(tmp_path: Path) -> None:
    images = np.stack([np.full((1, 2, 3), value, np.float32) for value in (-1, 0, 1, 5, -5)])
    image_grid(images, tmp_path / "grid.png", columns=3, scale=4)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (2 * (2 * 4 + 4) + 4, 3 * (3 * 4 + 4) + 4, 3)
    assert [int(pixels[4, 4 + 16 * i, 0]) for i in range(3)] == [0, 128, 255]
    assert [int(pixels[16, 4 + 16 * i, 0]) for i in range(3)] == [255, 0, 255]  # the last place is empty: white


def test_image_grid_keeps_colours_and_writes_labels_below(tmp_path: Path) -> None:
    images = np.full((2, 3, 8, 8), -1.0)
    images[0, 0] = 1.0
    image_grid(images, tmp_path / "grid.png", columns=2, scale=2, labels=["red", "black"])
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels[4, 4].tolist() == [255, 0, 0]
    below = pixels[18:32]
    assert below.min() < 100 and below[:, :18].min() < 100


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 8, 8), (0, 1, 8, 8)])
def test_image_grid_refuses_arrays_of_other_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="an image grid needs images of shape"):
        image_grid(np.zeros(shape), tmp_path / "grid.png", columns=2)


def test_image_grid_needs_one_label_per_image(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got 1 labels for 2 images"):
        image_grid(np.zeros((2, 1, 4, 4)), tmp_path / "grid.png", columns=2, labels=["a"])

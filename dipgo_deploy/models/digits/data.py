"""scikit-learn's handwritten digits as 16x16 images, with a fixed split and a light augmentation.

The 1,797 scans (8x8, grey levels 0..16) come with scikit-learn, so nothing is downloaded. They are
resized once with bicubic interpolation and clamped to [-1, 1], -1 being the paper and +1 the ink.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from dipgo_deploy.core.errors import UsageError

__all__ = ["CLASSES", "SIZE", "Digits", "augment", "load_split"]

CLASSES = 10
"""Digits 0 to 9."""

SIZE = 16
"""Side of an image in pixels."""

TEST_IMAGES = 360
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 16, 16) float32 in [-1, 1] and their labels (N,) int64 in 0..9."""

    images: torch.Tensor
    labels: torch.Tensor


@cache
def load_split(split: Literal["train", "test", "all"]) -> Digits:
    """Return one part of the digits: 1,437 for training, 360 for testing, or all 1,797.

    The split is a permutation with a fixed seed, the same on every machine. Treat the result as
    read-only: it is cached.

    Raises:
        UsageError: `split` is none of the three names.
    """
    if split not in ("train", "test", "all"):
        raise UsageError(f"split must be 'train', 'test' or 'all', found {split!r}")
    raw = load_digits()
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(raw.target))
    chosen = {"train": order[TEST_IMAGES:], "test": order[:TEST_IMAGES], "all": order}[split]
    images = torch.from_numpy(raw.images[chosen]).float().unsqueeze(1) / 8 - 1
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    return Digits(images, torch.from_numpy(raw.target[chosen]).long())


def augment(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    shift: float = 0.06,
    scale: float = 0.06,
    turn: float = 0.08,
) -> torch.Tensor:
    """Move, zoom and turn each image a little, by bilinear resampling.

    Args:
        images: (B, 1, H, W) in [-1, 1].
        generator: source of the draws; the same state gives the same result.
        shift: largest shift as a share of half the image (0.06 is half a pixel of 16).
        scale: largest relative change of size.
        turn: largest rotation, radians.

    Returns:
        New images of the same shape; what enters from outside is paper (-1).
    """
    draw = torch.rand(len(images), 4, generator=generator) * 2 - 1
    angle, size = draw[:, 0] * turn, 1 + draw[:, 1] * scale
    cos, sin, move = angle.cos() * size, angle.sin() * size, draw[:, 2:] * shift
    rows = [torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1

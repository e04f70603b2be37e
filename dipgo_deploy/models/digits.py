"""Handwritten digits, and the classifier that evaluates samples of the reference models.

The 1,797 scans (8x8, grey levels 0 to 16) come with scikit-learn, so nothing is downloaded. They are resized once to
16x16 with bicubic interpolation and clamped to [-1, 1], where -1 is paper and +1 is ink.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn

from dipgo_deploy.core.errors import UsageError

__all__ = [
    "CLASSES",
    "SHIPPED",
    "SIZE",
    "Digits",
    "DigitsClassifier",
    "accuracy",
    "frechet_distance",
    "load_classifier",
    "load_split",
]

CLASSES = 10
"""Digits 0 to 9."""

SIZE = 16
"""Side of an image in pixels."""

SHIPPED = Path(__file__).parent / "reference" / "digits-classifier"
"""Folder of the trained classifier."""

_TEST_IMAGES = 360
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 16, 16) float32 in [-1, 1] and their labels (N,) int64 from 0 to 9."""

    images: torch.Tensor
    labels: torch.Tensor


@cache
def load_split(split: Literal["train", "test", "all"]) -> Digits:
    """Load one part of the digits: 1,437 for training, 360 for testing, or all 1,797.

    The split is a permutation with a fixed seed, the same on every machine. The result is cached: do not write to it.

    Raises UsageError for another name.
    """
    if split not in ("train", "test", "all"):
        raise UsageError(f"split must be 'train', 'test' or 'all', got {split!r}")
    raw = load_digits()
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(raw.target))
    indices = {"train": order[_TEST_IMAGES:], "test": order[:_TEST_IMAGES], "all": order}[split]
    images = torch.from_numpy(raw.images[indices]).float().unsqueeze(1) / 8 - 1
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    return Digits(images, torch.from_numpy(raw.target[indices]).long())


class DigitsClassifier(nn.Module):
    """Three convolutions, a global mean and two linear layers, about 85,000 parameters.

    Args:
        channels: output channels of the three convolutions. The last number is also the width of the features.
        classes: number of classes.
    """

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 96), classes: int = CLASSES) -> None:
        super().__init__()
        first, second, width = channels
        self.config = {"channels": list(channels), "classes": classes}
        self.trunk = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(second, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(width, width), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(width, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Penultimate activations (B, 96), non-negative, of images (B, 1, 16, 16) in [-1, 1]."""
        return self.trunk(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 10) of images (B, 1, 16, 16) in [-1, 1]."""
        return self.head(self.features(images))


def load_classifier(folder: Path = SHIPPED) -> DigitsClassifier:
    """Load a classifier in eval mode, by default the shipped classifier.

    Raises:
        FileNotFoundError: `folder` holds no classifier.
        RuntimeError: the weights do not fit the configuration.
    """
    config = json.loads((folder / "config.json").read_text())
    classifier = DigitsClassifier(tuple(config["channels"]), config["classes"])
    classifier.load_state_dict(load_file(folder / "model.safetensors"))
    return classifier.eval()


@torch.no_grad()
def accuracy(classifier: DigitsClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose label the classifier recognizes.

    Args:
        classifier: the classifier.
        images: (B, 1, 16, 16) in [-1, 1].
        labels: (B,).

    Returns:
        A number from 0 to 1.
    """
    return (classifier(images).argmax(1) == labels).float().mean().item()


def frechet_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6).

    Distances are comparable only for the same kind of features.

    Args:
        first: (N, D).
        second: (M, D).

    Returns:
        The distance.
    """
    first, second = first.double(), second.double()
    shift, first_cov, second_cov = first.mean(0) - second.mean(0), first.T.cov(), second.T.cov()
    # The trace of the product's square root is the sum of the square roots of its eigenvalues.
    root = torch.linalg.eigvals(first_cov @ second_cov).real.clamp(min=0).sqrt().sum()
    return float(shift @ shift + first_cov.trace() + second_cov.trace() - 2 * root)

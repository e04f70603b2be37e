"""A small convolutional classifier of digits: the judge of the reference models' samples.

Its logits say whether a sample shows the class that was asked for; its penultimate features give
the Frechet distance between samples and real digits.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dipgo_deploy.models.digits.data import CLASSES

__all__ = ["SHIPPED", "DigitsClassifier", "accuracy", "load_classifier", "save_classifier"]

SHIPPED = Path(__file__).parents[1] / "reference" / "digits-classifier"
"""Folder of the trained classifier."""


class DigitsClassifier(nn.Module):
    """Three convolutions, a global mean and two linear layers; about 85,000 parameters.

    Args:
        channels: output channels of the three convolutions; the last is also the feature width.
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
        """Return the penultimate activations (B, 96), non-negative, of images (B, 1, 16, 16) in [-1, 1]."""
        return self.trunk(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 10) of images (B, 1, 16, 16) in [-1, 1]."""
        return self.head(self.features(images))


def save_classifier(classifier: DigitsClassifier, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, creating it when missing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(classifier.config, indent=2) + "\n")
    save_file(classifier.state_dict(), folder / "model.safetensors")


def load_classifier(folder: Path = SHIPPED) -> DigitsClassifier:
    """Return the classifier stored in `folder` (the shipped one by default), in eval mode.

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
    """Return the share, 0..1, of images (B, 1, 16, 16) that the classifier gives their label (B,)."""
    return (classifier(images).argmax(1) == labels).float().mean().item()

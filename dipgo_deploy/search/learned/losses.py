"""Losses between images of a chain and of its teacher: logarithms of squared errors, so that good images count too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, first_line

__all__ = ["Loss", "log_mse", "perceptual_loss"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Images and the teacher's (B, C, ...) to a scalar in dB: ten times a mean decimal logarithm."""

_FLOOR = 1e-12
"""Squared error that counts as none."""


def log_mse(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over images of the logarithm of their squared error, in dB. Its negative is the PSNR up to a constant."""
    squared = (images.double() - target.double()).square().flatten(1).mean(1)
    return 10 * (squared + _FLOOR).log10().mean()


def perceptual_loss(name: str, device: torch.device) -> Loss:
    """The logarithm of the squared error of features.

    Args:
        name: ``package.module:attribute`` of a module or a function. It takes images (B, C, H, W) in [-1, 1] and gives
            a tensor or several, each (B, ...). The working directory is searched first.
        device: where the images are.

    Returns:
        The loss: the mean over images and tensors, in dB.

    Raises:
        InputError: there is no such attribute, or it gives no tensors.
    """
    network = _imported(name)
    if isinstance(network, nn.Module):
        network = network.to(device).eval().requires_grad_(False)

    def loss(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = _tensors(name, network, target.float())
        own = _tensors(name, network, images.float())
        return torch.stack([log_mse(mine, theirs) for mine, theirs in zip(own, wanted, strict=True)]).mean()

    return loss


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        value = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{name} cannot be imported ({error}): give package.module:attribute") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not callable(value):
        raise InputError(f"{name} is a {type(value).__name__}, which takes no images: name a module or a function")
    return value


def _tensors(name: str, network: Callable[[torch.Tensor], Any], images: torch.Tensor) -> list[torch.Tensor]:
    try:
        features = network(images)
    except Exception as error:  # The user's code may raise anything.
        shape = tuple(images.shape)
        raise InputError(f"{name} fails on images of shape {shape} ({first_line(error)}): fix it") from error
    tensors = list(features) if isinstance(features, list | tuple) else [features]
    if not tensors or not all(isinstance(each, torch.Tensor) and len(each) == len(images) for each in tensors):
        raise InputError(f"{name} must give one tensor or several, with one row per image")
    return tensors

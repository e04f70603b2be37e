"""Consistency losses: how far the pruned run's images are from the full run's. 0 for equal images."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["CONSISTENCY", "ssim_of"]

_RADIUS = 5
_FLOOR = 1e-6
"""Squared error that ``psnr`` hardly improves on: 66 dB on images in [-1, 1]."""


def ssim_of(images: torch.Tensor, reference: torch.Tensor, data_range: float) -> torch.Tensor:
    """Structural similarity of images to their references, differentiable, 1 for identical images.

    The window is the usual Gaussian of 11 pixels (sigma 1.5, Wang et al. 2004), smaller on images below 11 pixels.

    Args:
        images: (N, C, H, W).
        reference: (N, C, H, W).
        data_range: largest minus smallest possible value.

    Returns:
        SSIM (N,).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    radius = max(1, min(_RADIUS, (min(images.shape[2:]) - 1) // 2))
    # torchmetrics derives the window from sigma: 0.3 of the radius gives exactly that radius.
    similarity = structural_similarity_index_measure(
        images, reference, sigma=0.3 * radius, data_range=data_range, reduction="none"
    )
    assert isinstance(similarity, torch.Tensor)
    return similarity.reshape(-1)


def _psnr_loss(images: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    squared = (images - full).square().mean(dim=(1, 2, 3))
    return ((squared + _FLOOR) / _FLOOR).log10().mean()


CONSISTENCY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "ssim": lambda images, full: 1 - ssim_of((images + 1) / 2, (full + 1) / 2, 1.0).mean(),
    "l1": lambda images, full: (images - full).abs().mean(),
    "l2": lambda images, full: (images - full).square().mean(),
    "psnr": _psnr_loss,
}
"""Each loss by name: images and the full run's, both (B, C, H, W) in about [-1, 1], to a scalar."""

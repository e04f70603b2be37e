"""How near images are to those of a reference, one by one.

Images are (N, C, H, W) in the model's [-1, 1]; they are compared in [0, 1], clipped as saving them would.
"""

from __future__ import annotations

import numpy as np

__all__ = ["PSNR_CAP_DB", "psnr_db", "unit_range"]

PSNR_CAP_DB = 120.0
"""PSNR of identical images, which is infinite, and of any that come nearer than this."""


def psnr_db(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """PSNR (N,) in dB of each image to its reference, data range 1, at most `PSNR_CAP_DB`."""
    error = ((unit_range(images) - unit_range(reference)) ** 2).reshape(len(images), -1).mean(axis=1)
    return -10 * np.log10(np.maximum(error, 10 ** (-PSNR_CAP_DB / 10)))


def unit_range(images: np.ndarray) -> np.ndarray:
    """Images of a model's [-1, 1] as float64 in [0, 1], clipped as they are when saved."""
    return np.clip(images.astype(np.float64) / 2 + 0.5, 0.0, 1.0)

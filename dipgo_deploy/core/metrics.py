"""How close images are to reference images, and how such values are summarized. Every package compares images here.

Conventions:

1. Images are (N, C, H, W) in the model's range [-1, 1].
2. PSNR and SSIM compare images in [0, 1], so the data range is 1. SSIM depends on where 0 lies: never skip the mapping.
3. Reported values clip images first, as saving an image does. A search compares unclipped images instead: clipping
   hides errors outside the range, and latents have no such range.
4. Identical images have a PSNR of `PSNR_CAP_DB`, since infinity has no JSON form and no mean.

SSIM itself needs torch and lives with the consistency losses in ``dipgo_deploy.search``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["IDENTICAL", "PSNR_CAP_DB", "median_interval", "percentiles", "psnr_db", "psnr_text", "unit_range"]

PSNR_CAP_DB = 120.0
"""The largest PSNR that is reported."""

IDENTICAL = "identical"
"""How a PSNR of `PSNR_CAP_DB` is printed."""

_RESAMPLES = 2000


def unit_range(images: np.ndarray, *, clip: bool = True) -> np.ndarray:
    """Map images from [-1, 1] to [0, 1].

    Args:
        images: of any shape.
        clip: limit the result to [0, 1], as saving an image does.

    Returns:
        An array of the same shape in float64.
    """
    mapped: np.ndarray = images.astype(np.float64) / 2 + 0.5
    return np.clip(mapped, 0.0, 1.0) if clip else mapped


def psnr_db(images: np.ndarray, reference: np.ndarray, *, clip: bool = True) -> np.ndarray:
    """PSNR of each image to its reference image, with data range 1.

    Args:
        images: (N, C, H, W) in [-1, 1].
        reference: the reference images, of the same shape.
        clip: compare images as they are saved. Use False for latents.

    Returns:
        (N,) in dB, at most `PSNR_CAP_DB`.
    """
    squared_error = (unit_range(images, clip=clip) - unit_range(reference, clip=clip)) ** 2
    mean_squared_error = squared_error.reshape(len(images), -1).mean(axis=1)
    values: np.ndarray = -10 * np.log10(np.maximum(mean_squared_error, 10 ** (-PSNR_CAP_DB / 10)))
    return values


def psnr_text(psnr: float, unit: str = " dB") -> str:
    """A PSNR for people to read.

    Args:
        psnr: in dB.
        unit: text after the number.

    Returns:
        Such as ``35.5 dB``, or ``identical`` at `PSNR_CAP_DB`.
    """
    return IDENTICAL if psnr >= PSNR_CAP_DB else f"{psnr:.1f}{unit}"


def percentiles(values: Sequence[float] | np.ndarray, *points: int) -> dict[str, float]:
    """Percentiles by name, such as ``{"p10": ..., "p50": ...}``.

    Args:
        values: at least one value.
        *points: percentiles from 0 to 100. Between two values, a percentile is interpolated linearly.

    Returns:
        One entry per point.
    """
    return {f"p{point}": float(np.percentile(values, point)) for point in points}


def median_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, float]:
    """Bootstrap 95 % interval of the median (percentile method, 2000 resamples).

    Args:
        values: at least one value, for example one per image.
        seed: of the resampling. Equal values and seeds give equal intervals.

    Returns:
        ``{"p50_low": ..., "p50_high": ...}``.
    """
    array = np.asarray(values, dtype=np.float64)
    resamples = np.random.default_rng(seed).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.percentile(np.median(array[resamples], axis=1), [2.5, 97.5])
    return {"p50_low": float(low), "p50_high": float(high)}

"""First noise of images: what a seed means, wherever an image is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["noise_for"]


def noise_for(seeds: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise (B, C, H, W), float32; row i depends on ``seeds[i]`` alone."""
    rows = [np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds]
    return np.stack(rows)

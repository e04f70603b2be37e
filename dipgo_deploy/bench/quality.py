"""How good images are: in structure beside a reference, and as a set of digits. PSNR is in runtime/fidelity.py.

Images are (N, C, H, W) in the model's [-1, 1]; every measure maps them to [0, 1] and clips, as saving them would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipgo_deploy.runtime.fidelity import unit_range

__all__ = ["EXTRACTOR", "DigitsJudge", "digits_judge", "median_interval", "percentiles", "ssim"]

EXTRACTOR = "digits-classifier"
"""Name of the network behind `DigitsJudge`. Its Fréchet distance is no FID and compares only with itself."""
_RESAMPLES = 2000


def ssim(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM (N,) of each image to its reference, 1 for identical ones.

    The window is the usual Gaussian of 11 pixels (sigma 1.5; Wang et al. 2004), smaller on images below 11 pixels.
    """
    import torch

    from dipgo_deploy.search.dipgo.losses import ssim_of

    found, wanted = (torch.from_numpy(unit_range(array)) for array in (images, reference))
    return ssim_of(found, wanted, data_range=1.0).numpy()


def percentiles(values: Sequence[float] | np.ndarray, *points: int) -> dict[str, float]:
    """Percentiles by name, such as ``{"p10": ..., "p50": ...}``, linear between neighbours."""
    return {f"p{point}": float(np.percentile(values, point)) for point in points}


def median_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, float]:
    """Bootstrap 95 % interval of the median over images: ``{"p50_low": ..., "p50_high": ...}``.

    Percentile method, 2000 resamples with replacement; the same for the same values and ``seed``.
    """
    array = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.percentile(np.median(array[chosen], axis=1), [2.5, 97.5])
    return {"p50_low": float(low), "p50_high": float(high)}


@dataclass(frozen=True)
class DigitsJudge:
    """The shipped classifier of digits as a judge of sets of images (N, 1, 16, 16)."""

    classifier: Any

    def accuracy(self, images: np.ndarray, labels: Sequence[int]) -> float:
        """Share, 0..1, of the images in which the classifier sees their label."""
        import torch

        from dipgo_deploy.models.digits.classifier import accuracy

        return accuracy(self.classifier, _tensor(images), torch.as_tensor(list(labels)))

    def frechet(self, images: np.ndarray) -> float | None:
        """Fréchet distance to as many real digits in the classifier's features; None below two images.

        It falls as N grows, so compare at equal N only; `floor` is what real digits get.
        """
        return self._distance(_tensor(images), 0)

    def floor(self, count: int) -> float | None:
        """The distance of ``count`` real digits to as many others; None where there are too few of them."""
        real = self._real(count, count)
        return self._distance(real, 0) if len(real) == count else None

    def _distance(self, images: Any, first: int) -> float | None:
        import torch

        from dipgo_deploy.models.digits.evaluate import frechet_distance

        real = self._real(first, len(images))
        images = images[: len(real)]
        if len(images) < 2:
            return None
        with torch.no_grad():
            return frechet_distance(self.classifier.features(images), self.classifier.features(real))

    def _real(self, first: int, count: int) -> Any:
        from dipgo_deploy.models.digits.data import load_split

        return load_split("all").images[first : first + count]


def digits_judge(latent_shape: tuple[int, ...], num_classes: int | None) -> DigitsJudge | None:
    """The judge, for a model that draws the shipped digits by class; None for any other."""
    from dipgo_deploy.models.digits.classifier import load_classifier
    from dipgo_deploy.models.digits.data import CLASSES, SIZE

    fits = latent_shape == (1, SIZE, SIZE) and num_classes == CLASSES
    return DigitsJudge(load_classifier()) if fits else None


def _tensor(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.clip(images, -1, 1).astype(np.float32))

"""Evaluation of contenders: images next to reference images, sets of digits, and the row that results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dipgo_deploy.bench.contenders import Contender
from dipgo_deploy.bench.report import Row
from dipgo_deploy.bench.timing import Stopwatch
from dipgo_deploy.core.blocks import Macs
from dipgo_deploy.core.metrics import median_interval, percentiles, psnr_db, unit_range
from dipgo_deploy.core.program import memory_bytes

__all__ = ["EXTRACTOR", "DigitsEvaluator", "Evaluation", "digits_evaluator", "ssim"]

EXTRACTOR = "digits-classifier"
"""Name of the network behind `DigitsEvaluator`. Its Fréchet distance is not an FID and compares only with itself."""


def ssim(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM of each image to its reference image, compared as `dipgo_deploy.core.metrics` says.

    Args:
        images: (N, C, H, W) in [-1, 1].
        reference: the reference images, of the same shape.

    Returns:
        (N,), 1 for identical images.
    """
    import torch

    from dipgo_deploy.search.dipgo.losses import ssim_of

    ours, theirs = (torch.from_numpy(unit_range(array)) for array in (images, reference))
    return ssim_of(ours, theirs, data_range=1.0).numpy()


@dataclass(frozen=True)
class DigitsEvaluator:
    """Evaluates sets of images (N, 1, 16, 16) by the shipped classifier of digits."""

    classifier: Any

    def accuracy(self, images: np.ndarray, labels: Sequence[int]) -> float:
        """Share of the images in which the classifier sees the intended digit.

        Args:
            images: (N, 1, 16, 16) in [-1, 1].
            labels: the digit that each image should show.

        Returns:
            From 0 to 1.
        """
        import torch

        from dipgo_deploy.models.digits import accuracy

        return accuracy(self.classifier, _tensor(images), torch.as_tensor(list(labels)))

    def frechet(self, images: np.ndarray) -> float | None:
        """Fréchet distance to as many real digits in the classifier's features, or None below two images.

        The distance falls as N grows, so compare at equal N only. `floor` is the distance of real digits.
        """
        return self._distance(_tensor(images), 0)

    def floor(self, count: int) -> float | None:
        """The distance of ``count`` real digits to as many others, or None if there are too few digits."""
        real = self._real(count, count)
        return self._distance(real, 0) if len(real) == count else None

    def _distance(self, images: Any, first: int) -> float | None:
        import torch

        from dipgo_deploy.models.digits import frechet_distance

        real = self._real(first, len(images))
        images = images[: len(real)]
        if len(images) < 2:
            return None
        with torch.no_grad():
            return frechet_distance(self.classifier.features(images), self.classifier.features(real))

    def _real(self, first: int, count: int) -> Any:
        from dipgo_deploy.models.digits import load_split

        return load_split("all").images[first : first + count]


def digits_evaluator(latent_shape: tuple[int, ...], num_classes: int | None) -> DigitsEvaluator | None:
    """The evaluator for a model that draws the shipped digits by class.

    Args:
        latent_shape: (C, H, W).
        num_classes: number of classes of the model.

    Returns:
        None for any other model.
    """
    from dipgo_deploy.models.digits import CLASSES, SIZE, load_classifier

    fits = latent_shape == (1, SIZE, SIZE) and num_classes == CLASSES
    return DigitsEvaluator(load_classifier()) if fits else None


def _tensor(images: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.clip(images, -1, 1).astype(np.float32))


@dataclass(frozen=True)
class Evaluation:
    """The references with which every contender is compared.

    Attributes:
        full: images (N, C, H, W) of the full run.
        converged: images of the converged run for the first of these. None without a converged run.
        labels: class of each image.
        digits: None for models that do not draw digits.
        watch: durations of all contenders.
        full_macs: MACs of the full run, per image.
        overhead_ms: time that a pipeline adds for one batch. None if unknown.
    """

    full: np.ndarray
    converged: np.ndarray | None
    labels: Sequence[int]
    digits: DigitsEvaluator | None
    watch: Stopwatch
    full_macs: Macs
    overhead_ms: float | None

    def row(self, contender: Contender, images: np.ndarray, weight_bytes: int) -> Row:
        """Evaluate one contender.

        Args:
            contender: the contender, already timed.
            images: (N, C, H, W) that the contender drew.
            weight_bytes: bytes of the weights of all its graphs.

        Returns:
            The row of the report.
        """
        program, speedup = contender.program, self.watch.speedup(contender.name)
        overhead, digits = self.overhead_ms, self.digits
        pair = None if self.converged is None else (images[: len(self.converged)], self.converged)
        return Row(
            name=contender.name,
            kind=contender.kind,
            backend=contender.backend,
            nfe=program.nfe,
            macs=program.macs,
            latency_ms=self.watch.latency_ms(contender.name),
            speedup=speedup,
            speedup_end_to_end=None if overhead is None else self.watch.speedup(contender.name, overhead),
            efficiency=speedup * program.macs.full / self.full_macs.full,
            psnr_full_db=_psnr(images, self.full),
            psnr_converged_db=pair and _psnr(*pair),
            ssim=percentiles(ssim(images, self.full), 10, 50),
            ssim_converged=pair and percentiles(ssim(*pair), 10, 50),
            frechet=None if digits is None else digits.frechet(images),
            accuracy=None if digits is None else digits.accuracy(images, self.labels),
            weight_bytes=weight_bytes,
            slot_bytes=memory_bytes(program, contender.session.batch)["slots"],
            **asdict(contender.start),
        )


def _psnr(images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    values = psnr_db(images, reference)
    return {**percentiles(values, 10, 50), **median_interval(values)}

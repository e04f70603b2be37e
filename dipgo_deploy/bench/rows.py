"""A contender's row, from its images and durations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dipgo_deploy.bench.contenders import Contender
from dipgo_deploy.bench.quality import DigitsJudge, median_interval, percentiles, ssim
from dipgo_deploy.bench.report import Row
from dipgo_deploy.bench.timing import Stopwatch
from dipgo_deploy.core.blocks import Macs
from dipgo_deploy.core.program import memory_bytes
from dipgo_deploy.runtime.fidelity import psnr_db

__all__ = ["Judging"]


@dataclass(frozen=True)
class Judging:
    """What every contender is judged by.

    Attributes:
        full: images (N, C, H, W) of the full run.
        converged: images of the converged run, for the first of them; None without one.
        labels: class of each image.
        judge: of digits; None for other models.
        watch: all durations.
        full_macs: of the full run, per image.
        around_ms: what a pipeline spends besides, for one batch; None where there is nothing known.
    """

    full: np.ndarray
    converged: np.ndarray | None
    labels: Sequence[int]
    judge: DigitsJudge | None
    watch: Stopwatch
    full_macs: Macs
    around_ms: float | None

    def row(self, contender: Contender, images: np.ndarray, weight_bytes: int) -> Row:
        """The row of ``contender``, which drew ``images`` (N, C, H, W)."""
        program, speedup = contender.program, self.watch.speedup(contender.name)
        around, judge = self.around_ms, self.judge
        near = None if self.converged is None else (images[: len(self.converged)], self.converged)
        return Row(
            name=contender.name,
            kind=contender.kind,
            backend=contender.backend,
            nfe=program.nfe,
            macs=program.macs,
            latency_ms=self.watch.latency_ms(contender.name),
            speedup=speedup,
            speedup_end_to_end=None if around is None else self.watch.speedup(contender.name, around),
            efficiency=speedup * program.macs.full / self.full_macs.full,
            psnr_full_db=_psnr(images, self.full),
            psnr_converged_db=near and _psnr(*near),
            ssim=percentiles(ssim(images, self.full), 10, 50),
            ssim_converged=near and percentiles(ssim(*near), 10, 50),
            frechet=None if judge is None else judge.frechet(images),
            accuracy=None if judge is None else judge.accuracy(images, self.labels),
            weight_bytes=weight_bytes,
            slot_bytes=memory_bytes(program, contender.session.batch)["slots"],
            **asdict(contender.start),
        )


def _psnr(images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    values = psnr_db(images, reference)
    return {**percentiles(values, 10, 50), **median_interval(values)}

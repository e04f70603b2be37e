"""Judges asked in turn: the first, with a few images, tells which schedules are worth the images of the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.search.calibration import Judge
from dipgo_deploy.search.candidate import ComputeSets

__all__ = ["Panel"]


class Panel:
    """Judges of one model and kind, on images of their own. PSNR (B,) in dB runs over the images of all, in turn."""

    def __init__(self, judges: Sequence[Judge]) -> None:
        self.judges = tuple(judges)

    @property
    def graph(self) -> BlockGraph:
        """The blocks."""
        return self.judges[0].graph

    @property
    def spent(self) -> float:
        """Full trajectories of one image, those of all judges."""
        return sum(judge.spent for judge in self.judges)

    def psnr_db(self, computed: ComputeSets) -> np.ndarray:
        """PSNR (B,) of every image."""
        return np.concatenate([judge.psnr_db(computed) for judge in self.judges])

    def better(self, computed: ComputeSets, known: np.ndarray, least_gain_db: float) -> np.ndarray | None:
        """PSNR (B,) of every image where its mean exceeds that of ``known`` (B,) by more than ``least_gain_db``.

        Gives up after the first judge whose images, with those before, do not.
        """
        found = np.empty(0)
        for judge in self.judges:
            found = np.concatenate([found, judge.psnr_db(computed)])
            if found.mean() <= known[: len(found)].mean() + least_gain_db:
                return None
        return found

    def settle(self) -> None:
        """Later schedules will mostly begin as the last one that all judges were asked about."""
        for judge in self.judges:
            judge.settle()

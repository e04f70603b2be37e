"""Evaluator: the quality of schedules, as PSNR to the images of the full run, and the cost of evaluation.

A search tries many schedules that differ from each other late. The steps that they share are not computed again. The
states of one run, the *base*, are kept, and a schedule starts from the last state before it differs from the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.calibration import Calibration
from dipgo_deploy.search.candidate import ComputeSets, schedule_from_sets
from dipgo_deploy.search.cost import Pricer
from dipgo_deploy.supernet.rollout import Rollout

__all__ = ["Evaluator", "Prefixes", "StagedEvaluator"]

_PEAK_TO_PEAK = 2.0
"""Range of images in [-1, 1]. For latents of another range it moves every PSNR by the same amount."""


class Prefixes:
    """Runs of hold schedules that start from kept states of the base.

    Args:
        begin: makes a rollout that is about to run step 0.
        states: largest number of states kept of one run, 0 for none. A state holds every block's computed features.
    """

    def __init__(self, begin: Callable[[Schedule], Rollout], states: int) -> None:
        self._begin, self._states = begin, states
        self._base: list[Rollout] = []
        self._last: list[Rollout] = []

    def settle(self) -> None:
        """Make the last run the base: later schedules will mostly agree with it."""
        self._base = self._last

    def image(self, schedule: Schedule) -> tuple[torch.Tensor, int]:
        """Last latent (B, C, H, W) under ``schedule``, bit for bit that of a whole run, and the first step run."""
        agreeing = [state for state in self._base if _agree(state, schedule)]
        rollout = agreeing[-1].fork(schedule) if agreeing else self._begin(schedule)
        first, self._last = rollout.step, agreeing
        calls = [step for step, computed in enumerate(schedule.computed[:-1]) if any(computed)]
        kept = set(calls[:: -(-len(calls) // self._states)]) if self._states else set[int]()
        while True:
            step = rollout.advance()
            if rollout.step == schedule.steps:
                return step.latent, first
            if step.step in kept:
                self._last = [*self._last, rollout.fork(schedule)]


def _agree(state: Rollout, schedule: Schedule) -> bool:
    return state.schedule.computed[: state.step] == schedule.computed[: state.step]


class Evaluator:
    """PSNR of hold schedules to the full run on one calibration, remembered and counted.

    Args:
        calibration: noise, conditioning and the full run's images.
        graph: blocks of the model.
        kind: whether reuse is of a block's output or its residual.
        states: largest number of states kept of the base run, 0 for none.
        table: latency table. If given, costs are shares of time.

    Attributes:
        search_cost: cost so far in full trajectories of one image, the calibration's own included. A schedule that
            prunes 0.8 of the MACs costs 0.2 per image, and less where it shares its first steps with the base run.
    """

    def __init__(
        self,
        calibration: Calibration,
        graph: BlockGraph,
        kind: Kind,
        states: int = 0,
        table: LatencyTable | None = None,
    ) -> None:
        self.calibration, self.graph, self.kind = calibration, graph, kind
        self.pricer = Pricer(graph, kind, table)
        self.search_cost = float(calibration.count)
        self._prefixes = Prefixes(self._begin, states)
        self._known: dict[tuple[frozenset[str], ...], np.ndarray] = {}

    def psnr_db(self, computed: ComputeSets) -> np.ndarray:
        """PSNR (B,) of every image in dB, at most 120."""
        key = tuple(computed)
        if key not in self._known:
            schedule = schedule_from_sets(self.graph, self.calibration.contract, self.kind, key)
            latent, first = self._prefixes.image(schedule)
            error = latent.cpu().numpy().astype(np.float64) - self.calibration.images
            mse = np.mean(error**2, axis=(1, 2, 3))
            self._known[key] = 10 * np.log10(_PEAK_TO_PEAK**2 / np.maximum(mse, _PEAK_TO_PEAK**2 * 1e-12))
            self.search_cost += self.calibration.count * self.pricer.kept(key, first)
        return self._known[key]

    def score(self, computed: ComputeSets) -> float:
        """Mean PSNR in dB: higher is better."""
        return float(np.mean(self.psnr_db(computed)))

    def settle(self) -> None:
        """Keep the states of the last run: later schedules will mostly begin as that run did."""
        self._prefixes.settle()

    def _begin(self, schedule: Schedule) -> Rollout:
        calibration = self.calibration
        return Rollout(
            calibration.model, schedule, calibration.noise, calibration.conditioning,
            guidance_scale=calibration.guidance_scale, seed=0,
        )  # fmt: skip


class StagedEvaluator:
    """Evaluators used in stages: the first has few images and tells which schedules deserve those of the others.

    PSNR (B,) in dB covers the images of all evaluators, in their order.
    """

    def __init__(self, evaluators: Sequence[Evaluator]) -> None:
        self.evaluators = tuple(evaluators)

    @property
    def graph(self) -> BlockGraph:
        """The blocks."""
        return self.evaluators[0].graph

    @property
    def search_cost(self) -> float:
        """Full trajectories of one image, summed over all evaluators."""
        return sum(evaluator.search_cost for evaluator in self.evaluators)

    def psnr_db(self, computed: ComputeSets) -> np.ndarray:
        """PSNR (B,) of every image."""
        return np.concatenate([evaluator.psnr_db(computed) for evaluator in self.evaluators])

    def better(self, computed: ComputeSets, known: np.ndarray, least_gain_db: float) -> np.ndarray | None:
        """Evaluate a schedule until an evaluator finds too little gain.

        Args:
            computed: the schedule to try.
            known: PSNR (B,) of the schedule to beat.
            least_gain_db: gain of the mean PSNR that counts.

        Returns:
            PSNR (B,) of every image, or None if the mean gains too little on the images of any stage.
        """
        values = np.empty(0)
        for evaluator in self.evaluators:
            values = np.concatenate([values, evaluator.psnr_db(computed)])
            if values.mean() <= known[: len(values)].mean() + least_gain_db:
                return None
        return values

    def settle(self) -> None:
        """Keep the states of the last schedule that all evaluators ran."""
        for evaluator in self.evaluators:
            evaluator.settle()

"""What a search judges schedules by: noise and conditioning of its own, and the full run's images from them.

The seeds of a search never meet those of a bench: what is reported is measured on noise that no search has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.sampler import noise_for
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.search.candidate import ComputeSets, schedule_from_sets
from dipgo_deploy.search.prefixes import Prefixes
from dipgo_deploy.search.pricing import Pricer
from dipgo_deploy.supernet.rollout import Rollout, last_latent, reference_trajectory

__all__ = ["Calibration", "Judge", "calibrate", "images_of"]

_PEAK_TO_PEAK = 2.0
"""Range of images in [-1, 1]; for latents of another range it moves every PSNR by the same amount."""


@dataclass(frozen=True)
class Calibration:
    """One batch of B trajectories: ``noise`` (B, C, H, W), conditioning rows, and the full run's ``images``."""

    model: LoadedModel
    contract: Contract
    noise: np.ndarray
    conditioning: Mapping[str, np.ndarray]
    guidance_scale: float
    images: np.ndarray

    @property
    def count(self) -> int:
        """Number B of images."""
        return len(self.noise)


def calibrate(
    model: LoadedModel,
    graph: BlockGraph,
    contract: Contract,
    seeds: Sequence[int],
    *,
    classes: Sequence[int] = (),
    guidance_scale: float | None = None,
) -> Calibration:
    """Run the full model once from ``seeds``; image i takes ``classes`` in turn (all the model has, if none is given).

    Raises UsageError for a class that the model does not have.
    """
    known = tuple(classes) or tuple(range(model.num_classes or 1))
    labels = [known[seed % len(known)] for seed in seeds]
    noise = noise_for(seeds, contract.latent_shape)
    conditioning = model.conditioning(labels, contract.guidance)
    scale = contract.guidance_scale(guidance_scale)
    blank = Calibration(model, contract, noise, conditioning, scale, np.empty(0))
    full = full_schedule(contract, graph.granularity, "output", graph.block_names)
    return Calibration(model, contract, noise, conditioning, scale, images_of(blank, full))


def images_of(calibration: Calibration, schedule: Schedule) -> np.ndarray:
    """What ``schedule`` makes of the calibration's noise on the live model, (B, C, H, W), float32 or wider."""
    given = calibration.noise, calibration.conditioning
    scale = calibration.guidance_scale
    trajectory = reference_trajectory(calibration.model, schedule, *given, guidance_scale=scale, seed=0)
    images: np.ndarray = last_latent(trajectory).cpu().numpy()
    return images


class Judge:
    """PSNR of hold schedules to the full run on one calibration, remembered and counted.

    ``spent`` is the cost so far in full trajectories of one image, the calibration's own included: a schedule that
    prunes 0.8 of the MACs costs 0.2 of one, and less where it shares its first steps with the settled one, of whose run
    ``states`` are kept. With a latency ``table`` costs are shares of time.
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
        self.spent = float(calibration.count)
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
            self.spent += self.calibration.count * self.pricer.kept(key, first)
        return self._known[key]

    def score(self, computed: ComputeSets) -> float:
        """Mean PSNR in dB: higher is better."""
        return float(np.mean(self.psnr_db(computed)))

    def settle(self) -> None:
        """Later schedules will mostly begin as the one that was run last: keep its states for them."""
        self._prefixes.settle()

    def _begin(self, schedule: Schedule) -> Rollout:
        given = self.calibration
        scale = given.guidance_scale
        return Rollout(given.model, schedule, given.noise, given.conditioning, guidance_scale=scale, seed=0)

"""Calibration: noise and conditioning of a search, and the full run's images from them.

The seeds of a search differ from those of a bench: results are measured on noise that the search has not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.sampler import noise_for
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.supernet.rollout import last_latent, reference_trajectory

__all__ = ["Calibration", "calibrate", "images_of"]


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
    """Run the full model once.

    Args:
        model: the model.
        graph: its blocks.
        contract: sampler, steps and guidance.
        seeds: one per image.
        classes: labels, assigned to images in turn. If empty, all classes of the model.
        guidance_scale: guidance scale. None means the contract's default.

    Returns:
        The noise, its conditioning and the full run's images.

    Raises:
        UsageError: the model does not have one of the classes.
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
    """Images (B, C, H, W) of ``schedule`` from the calibration's noise on the live model, float32 or wider."""
    start = calibration.noise, calibration.conditioning
    scale = calibration.guidance_scale
    trajectory = reference_trajectory(calibration.model, schedule, *start, guidance_scale=scale, seed=0)
    images: np.ndarray = last_latent(trajectory).cpu().numpy()
    return images

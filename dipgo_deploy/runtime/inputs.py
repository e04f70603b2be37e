"""The inputs of a run that nobody has asked anything of: noise of some seeds, and the model's classes in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.noise import noise_for
from dipgo_deploy.models import LoadedModel

__all__ = ["Inputs", "run_inputs"]

Inputs = tuple[np.ndarray, Mapping[str, np.ndarray]]
"""Noise and conditioning of a run."""


def run_inputs(model: LoadedModel, contract: Contract, seeds: Sequence[int]) -> Inputs:
    """Noise (B, C, H, W) of ``seeds``, and conditioning of as many images, of class 0, 1 and so on."""
    classes = model.num_classes or 1
    labels = [index % classes for index in range(len(seeds))]
    return noise_for(seeds, contract.latent_shape), model.conditioning(labels, contract.guidance)

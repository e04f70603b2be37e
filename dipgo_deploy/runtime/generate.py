"""Generate images with a bundle. An image depends on its seed and class, and not on the batch that it is made in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.sampler import noise_for
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.runtime.open import open_session
from dipgo_deploy.runtime.session import Session

__all__ = ["GenerateOptions", "Inputs", "generate", "generate_batches", "run_inputs"]

Inputs = tuple[np.ndarray, Mapping[str, np.ndarray]]
"""Noise and conditioning of a run."""


def run_inputs(
    model: LoadedModel, contract: Contract, seeds: Sequence[int], sizes: Mapping[str, int] = MappingProxyType({})
) -> Inputs:
    """Default inputs of a run: noise of the seeds, and the classes in turn.

    Args:
        model: makes the conditioning.
        contract: gives the latent shape and the guidance layout.
        seeds: one for each image.
        sizes: values of free sizes by symbol. The others have their usual values.

    Returns:
        Noise (B, C, H, W) of the seeds, and conditioning of class 0, 1 and so on.
    """
    classes = model.num_classes or 1
    labels = [index % classes for index in range(len(seeds))]
    return noise_for(seeds, contract.latent_at(sizes)), model.at_sizes(sizes).conditioning(labels, contract.guidance)


@dataclass(frozen=True)
class GenerateOptions:
    """What to generate.

    Attributes:
        seed: of the first image. Image i takes ``seed + i``.
        classes: of the images. Empty takes all classes of the model.
        count: images of each class.
        guidance_scale: None takes the contract's usual scale.
        batch: images at a time.
        run: what runs the graphs.
        sizes: values of free sizes by symbol, such as ``{"height": 96, "width": 64}``. The others have their usual
            values.

    Raises:
        UsageError: a count or batch below 1.
    """

    seed: int = 0
    classes: tuple[int, ...] = ()
    count: int = 1
    guidance_scale: float | None = None
    batch: int = 8
    run: RunOptions = RunOptions()
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("count", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")

    def images_of(self, num_classes: int | None) -> tuple[list[int], list[int]]:
        """Which images are generated.

        Args:
            num_classes: number of classes of the model. None without classes.

        Returns:
            Seed and class of every image, class by class.
        """
        classes = self.classes or range(num_classes or 1)
        labels = [label for label in classes for _ in range(self.count)]
        return [self.seed + index for index in range(len(labels))], labels


def generate(bundle: Bundle, options: GenerateOptions = GenerateOptions()) -> np.ndarray:
    """Generate images.

    Args:
        bundle: the bundle to run.
        options: seeds, classes and backend.

    Returns:
        Images (N, C, H, W), float32, class by class. Their range is that of the model, usually [-1, 1].

    Raises:
        UsageError: a class that the model does not have, or an option that does not fit the bundle.
    """
    seeds, labels = options.images_of(bundle.model.num_classes)
    scale = bundle.contract.guidance_scale(options.guidance_scale)
    batch = min(options.batch, len(labels))
    session = open_session(bundle, batch, options.run, guidance_scale=scale, sizes=options.sizes)
    return np.concatenate(list(generate_batches(session, bundle, seeds, labels, options.sizes)))


def generate_batches(
    session: Session,
    bundle: Bundle,
    seeds: Sequence[int],
    labels: Sequence[int],
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[np.ndarray]:
    """Generate images one batch of the session at a time.

    A sampler that draws noise uses the batch's first seed and the seeds after it.

    Args:
        session: runs the bundle's program, or another program of the same model.
        bundle: its model makes the conditioning.
        seeds: one for each image.
        labels: the class of each image.
        sizes: values of free sizes by symbol, those of the session.

    Yields:
        Images (B, C, H, W), float32. The last batch may be shorter.
    """
    contract, batch, model = bundle.contract, session.batch, bundle.model.at_sizes(sizes)
    for start in range(0, len(seeds), batch):
        # A session has a fixed batch, so the last one is filled up with repeats, which are dropped.
        indices = [min(start + i, len(seeds) - 1) for i in range(batch)]
        noise = noise_for([seeds[i] for i in indices], contract.latent_at(sizes))
        conditioning = model.conditioning([labels[i] for i in indices], contract.guidance)
        images = session.run(noise, conditioning, seed=seeds[start])
        yield images[: len(seeds) - start].astype(np.float32)

"""Compare two bundles by what they draw: latents and images of the same seeds and classes.

Each bundle makes its own conditioning and runs its own program, so the bundles may hold different models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.metrics import percentiles, psnr_db
from dipgo_deploy.models.pipeline_folder import VAE, component_names, load_module, using_component
from dipgo_deploy.runtime.generate import generate_batches
from dipgo_deploy.runtime.open import open_session
from dipgo_deploy.verify.options import VerifyOptions

__all__ = ["BundleComparison", "ImageDifference", "compare_bundles"]

_BATCH = 8


@dataclass(frozen=True)
class ImageDifference:
    """The difference of one image.

    Attributes:
        seed: seed of the noise in both bundles.
        max_abs: largest absolute difference of the latents.
        psnr_db: of the second bundle's image to the first bundle's. Images are clipped to [-1, 1].
    """

    seed: int
    max_abs: float
    psnr_db: float


@dataclass(frozen=True)
class BundleComparison:
    """How far two bundles are apart.

    Attributes:
        images: one entry per seed.
        largest: largest absolute value of the first bundle's latents.
        decoded: whether PSNR is of decoded images. Otherwise it is of the latents themselves.
    """

    images: tuple[ImageDifference, ...]
    largest: float
    decoded: bool

    @property
    def max_abs(self) -> float:
        """Largest absolute difference of any latent."""
        return max(image.max_abs for image in self.images)

    @property
    def psnr(self) -> Mapping[str, float]:
        """PSNR over all images: worst, p10 and p50."""
        values = [image.psnr_db for image in self.images]
        return {"worst": min(values), **percentiles(values, 10, 50)}


def compare_bundles(first: Bundle, second: Bundle, options: VerifyOptions = VerifyOptions()) -> BundleComparison:
    """Draw the same seeds and classes with two bundles and compare the results.

    Args:
        first: the reference.
        second: the bundle that is compared with it.
        options: images, first seed, guidance scale, and the backend of both bundles.

    Returns:
        The differences, image by image.

    Raises:
        InputError: the bundles make latents of different shapes.
    """
    shapes = first.contract.latent_shape, second.contract.latent_shape
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{first.folder} makes latents of shape {shapes[0]}, {second.folder} of shape {shapes[1]}: compare bundles "
            "of one shape"
        )
    seeds = [options.seed + index for index in range(options.images)]
    classes = min(bundle.model.num_classes or 1 for bundle in (first, second))
    labels = [index % classes for index in range(len(seeds))]
    ours, theirs = (_latents(bundle, seeds, labels, options) for bundle in (first, second))
    gaps = np.abs(theirs.astype(np.float64) - ours).reshape(len(seeds), -1).max(axis=1)
    is_image = len(shapes[0]) == 3 and shapes[0][0] in (1, 3)
    decoded = [ours, theirs] if is_image else [_decoded(first, ours), _decoded(second, theirs)]
    pictures = [picture for picture in decoded if picture is not None]
    is_drawn = len(pictures) == 2
    values = psnr_db(pictures[1], pictures[0]) if is_drawn else psnr_db(theirs, ours, clip=False)
    images = zip(seeds, gaps, values, strict=True)
    return BundleComparison(
        tuple(ImageDifference(seed, float(gap), float(value)) for seed, gap, value in images),
        float(np.abs(ours).max()),
        is_drawn,
    )


def _latents(bundle: Bundle, seeds: Sequence[int], labels: Sequence[int], options: VerifyOptions) -> np.ndarray:
    scale = bundle.contract.guidance_scale(options.guidance_scale)
    batch = min(_BATCH, len(seeds), bundle.contract.batch.max)
    session = open_session(bundle, batch, options.run, guidance_scale=scale)
    return np.concatenate(list(generate_batches(session, bundle, seeds, labels)))


def _decoded(bundle: Bundle, latents: np.ndarray) -> np.ndarray | None:
    """Images of latents by the bundle's VAE. None without a VAE that decodes single images by a scaling factor."""
    if VAE not in component_names(bundle.folder) or latents.ndim != 4:
        return None
    with using_component(bundle.folder, VAE) as (component_class, home):
        vae = load_module(component_class, home)
        if vae.config.get("latent_channels") != latents.shape[1] or not vae.config.get("scaling_factor"):
            return None
        return np.concatenate([_decode(vae, latent) for latent in latents])


@torch.inference_mode()
def _decode(vae: object, latent: np.ndarray) -> np.ndarray:
    config = vae.config  # type: ignore[attr-defined]
    scaled = torch.from_numpy(latent[None]) / config["scaling_factor"] + (config.get("shift_factor") or 0.0)
    image: np.ndarray = vae.decode(scaled).sample.numpy()  # type: ignore[attr-defined]
    return image

"""The floor of a fit: the best plain sampler with as many calls, on the held-out images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.metrics import psnr_db
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.models import sampler_spec
from dipgo_deploy.models.sampler_coefficients import next_latent, read_sampler
from dipgo_deploy.models.sampler_variants import PLAIN_SAMPLERS, Variant, variants
from dipgo_deploy.models.schedulers import own_config
from dipgo_deploy.search.fit.teacher import Images

__all__ = ["Plain", "best_plain"]


@dataclass(frozen=True)
class Plain:
    """A plain sampler, its name, and the mean PSNR of its held-out images in dB."""

    name: str
    spec: SamplerSpec
    score: float


def best_plain(images: Images, target: torch.Tensor, calls: int) -> Work[Plain | None]:
    """The plain sampler closest to the teacher.

    Args:
        images: the held-out images.
        target: the teacher's images (B, C, ...).
        calls: number of calls.

    Returns:
        A generator of Progress whose result is the sampler, or None if none makes that many calls.
    """
    best: Plain | None = None
    choice = list(_variants(images, calls))
    for done, (title, variant) in enumerate(choice):
        yield Progress("plain samplers", done, len(choice), title)
        drawn = np.nan_to_num(_drawn(images, variant).cpu().numpy(), nan=1e6)
        score = float(np.mean(psnr_db(drawn, target.cpu().numpy(), clip=False)))
        if best is None or score > best.score:
            best = Plain(f"{title}-{calls} {variant.label}", variant.spec, score)
    return best


def _variants(images: Images, calls: int) -> Iterator[tuple[str, Variant]]:
    config = own_config(images.contract.sampler)
    for name, title in PLAIN_SAMPLERS.items():
        yield from ((title, v) for v in variants(name, calls, config) if _fits(v, calls))
    try:
        spec = sampler_spec("flow-euler", calls, config)
        own = Variant("own spacing", spec, read_sampler(spec))
    except DipgoError:
        return
    if _fits(own, calls):
        yield "Euler", own


def _fits(variant: Variant, calls: int) -> bool:
    return variant.spec.calls == calls and isinstance(variant.reading, LinearSampler)


@torch.inference_mode()
def _drawn(images: Images, variant: Variant) -> torch.Tensor:
    """The images (B, C, ...) of a linear sampler."""
    network, sampler = images.network(), variant.reading
    assert isinstance(sampler, LinearSampler)
    latents = [images.noise.to(network.device, network.sampler_dtype) * sampler.initial_scale]
    outputs: list[torch.Tensor] = []
    for time, scale, update in zip(variant.spec.timesteps, sampler.input_scales, sampler.updates, strict=True):
        outputs.append(network.guided(network(latents[-1] * scale, time)))
        latents.append(next_latent(update, latents, outputs))
    return latents[-1]

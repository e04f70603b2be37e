"""Generate images with a bundle. Image i of a seed is the same whatever the batch it is made in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.noise import noise_for
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.loaded import BackendName, LoadedBundle

__all__ = ["GenerateOptions", "draw", "generate", "noise_for"]


@dataclass(frozen=True)
class GenerateOptions:
    """What to draw: ``count`` images of each class (all classes if none is named), ``batch`` at a time.

    The rest says what runs it, as LoadedBundle.session takes it.
    """

    seed: int = 0
    classes: tuple[int, ...] = ()
    count: int = 1
    guidance_scale: float | None = None
    backend: BackendName = "onnxruntime"
    batch: int = 8
    threads: int | None = None
    device: str = "cpu"
    cuda_graph: bool = False
    compiler: str | None = None
    gpu_memory: int | None = None
    trust_engines: bool = False


def generate(bundle: LoadedBundle, options: GenerateOptions = GenerateOptions()) -> np.ndarray:
    """Images (N, C, H, W), float32, class by class; the model's range is [-1, 1] as a rule.

    Raises UsageError for classes that the model does not have, or options that the bundle refuses.
    """
    if options.count < 1 or options.batch < 1:
        raise UsageError(f"{options.count} images, {options.batch} at a time, make no sense: ask for 1 or more")
    classes = options.classes or tuple(range(bundle.model.num_classes or 1))
    labels = [label for label in classes for _ in range(options.count)]
    seeds = [options.seed + i for i in range(len(labels))]
    session = bundle.session(
        min(options.batch, len(labels)),
        backend=options.backend,
        guidance_scale=bundle.manifest.contract.guidance_scale(options.guidance_scale),
        threads=options.threads,
        device=options.device,
        cuda_graph=options.cuda_graph,
        compiler=options.compiler,
        gpu_memory=options.gpu_memory,
        trust_engines=options.trust_engines,
    )
    return np.concatenate(list(draw(session, bundle, seeds, labels)))


def draw(session: Session, bundle: LoadedBundle, seeds: Sequence[int], labels: Sequence[int]) -> Iterator[np.ndarray]:
    """Images of ``seeds`` and ``labels``, a batch at a time, float32 (B, C, H, W), the last one shorter if need be.

    Noise that the sampler itself draws takes a batch's first seed and those that follow it.
    """
    contract, batch = bundle.manifest.contract, session.batch
    for start in range(0, len(seeds), batch):
        # The last batch is filled up with repeats, which are dropped: one session serves all.
        chosen = [min(start + i, len(seeds) - 1) for i in range(batch)]
        noise = noise_for([seeds[i] for i in chosen], contract.latent_shape)
        conditioning = bundle.model.conditioning([labels[i] for i in chosen], contract.guidance)
        made = session.run(noise, conditioning, seed=seeds[start])
        yield made[: len(seeds) - start].astype(np.float32)

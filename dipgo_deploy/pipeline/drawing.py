"""Draw images of prompts with the pipeline of a bundle.

Image i has a generator of its own with seed ``seed + i``, so an image does not depend on its batch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.models.presets.inputs import REFERENCE
from dipgo_deploy.pipeline.denoiser import DeployedDenoiser
from dipgo_deploy.pipeline.load import call_arguments, load_pipeline
from dipgo_deploy.pipeline.part_times import PartTimes, time_parts
from dipgo_deploy.runtime.memory import check_device

__all__ = ["PromptImages", "PromptOptions", "draw_prompts"]


_IMAGES = ("image", "mask_image", "control_image", "image_embeds")
"""Arguments of pipelines that take images."""


@dataclass(frozen=True)
class PromptOptions:
    """What to draw.

    Attributes:
        prompts: at least one.
        negative_prompt: for every image. None leaves it to the pipeline.
        seed: of the first image. Image i takes ``seed + i``.
        count: images of each prompt.
        guidance_scale: None leaves it to the pipeline.
        batch: images at a time.
        run: what runs the denoiser. The rest of the pipeline runs on the same device.
        trust_weights: check large files of the bundle by size only.
        latents: stop before the VAE, and return latents in place of images.
        sizes: height and width of the latent, where the contract has a range. The usual size by default.

    Raises:
        UsageError: no prompt, or a count or batch below 1.
    """

    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    seed: int = 0
    count: int = 1
    guidance_scale: float | None = None
    batch: int = 8
    run: RunOptions = RunOptions()
    trust_weights: bool = False
    latents: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the counts."""
        for name, value in {"prompts": len(self.prompts), "count": self.count, "batch": self.batch}.items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class PromptImages:
    """Images of prompts and their times.

    Attributes:
        images: (N, C, H, W) in [-1, 1], float32, prompt by prompt. Latents have the shape that the pipeline gives them
            with ``output_type="latent"``, such as (N, tokens, C) for FLUX.
        times: seconds by part, without the time to load graphs.
    """

    images: np.ndarray
    times: PartTimes


def draw_prompts(folder: Path, options: PromptOptions) -> PromptImages:
    """Draw images with the pipeline of a bundle.

    Args:
        folder: the bundle.
        options: prompts, seeds and backend.

    Returns:
        The images, and where the time went.

    Raises:
        UsageError: options that the pipeline or the contract does not take.
        MissingError: the device or a library is missing.
        InputError: the folder holds no complete pipeline.
    """
    check_device(options.run.device)
    pipeline = load_pipeline(folder, trust_weights=options.trust_weights, **asdict(options.run))
    if options.run.device == "cuda":
        pipeline.to("cuda", silence_dtype_warnings=True)
    pipeline.set_progress_bar_config(disable=True)
    denoiser = next(part for part in pipeline.components.values() if isinstance(part, DeployedDenoiser))
    if not options.latents and len(denoiser.bundle.contract.latent_shape) != 3:
        raise _no_images(pipeline)
    arguments = _arguments(pipeline, denoiser, options) | {"output_type": "latent" if options.latents else "np"}
    prompts = [prompt for prompt in options.prompts for _ in range(options.count)]
    batch = min(options.batch, len(prompts), denoiser.bundle.contract.batch.max)
    denoiser.prepare(batch=batch, sizes=options.sizes)
    with time_parts(pipeline) as times:
        parts = [
            _draw(pipeline, _fill_batch(prompts[start : start + batch], batch), options.seed + start, arguments)
            for start in range(0, len(prompts), batch)
        ]
    return PromptImages(np.concatenate(parts)[: len(prompts)], times)


def _fill_batch(prompts: Sequence[str], batch: int) -> list[str]:
    """Repeat the last prompt up to a full batch, because engines may take only one batch size."""
    return [*prompts, *([prompts[-1]] * (batch - len(prompts)))]


def _arguments(pipeline: Any, denoiser: DeployedDenoiser, options: PromptOptions) -> dict[str, Any]:
    """The arguments of every call. Raises UsageError for an option that the pipeline does not take."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    arguments = call_arguments(pipeline, denoiser.bundle.contract, options.sizes)
    texts = {"prompt": options.prompts, "negative_prompt": options.negative_prompt}
    for name, text in texts.items():
        if text is not None and name not in parameters:
            raise UsageError(
                f"{type(pipeline).__name__} takes no {name.replace('_', ' ')}: pass classes, or leave it out"
            )
    has_reference = any(spec.name == REFERENCE for spec in denoiser.bundle.blocks.inputs)
    # The image of Kontext, whose call has an area, is optional.
    images = [name for name in _IMAGES if name in parameters and (has_reference or "max_area" not in parameters)]
    if images:
        raise UsageError(
            f"{type(pipeline).__name__} also needs {' and '.join(images)}, a prompt alone draws nothing: call it "
            "from Python, see load_pipeline"
        )
    if options.guidance_scale is not None:
        _check_scale(options.guidance_scale, denoiser)
        if arguments.get("guidance_scale", options.guidance_scale) != options.guidance_scale:
            raise UsageError(f"guidance_scale {options.guidance_scale:g} needs a bundle with guidance: leave it out")
        arguments["guidance_scale"] = options.guidance_scale
    return arguments | ({} if options.negative_prompt is None else {"negative_prompt": options.negative_prompt})


def _check_scale(scale: float, denoiser: DeployedDenoiser) -> None:
    """Raise UsageError for a scale that is not finite, or that turns off guidance which the graphs need."""
    if not math.isfinite(scale):
        raise UsageError(f"guidance_scale must be finite, got {scale:g}")
    if denoiser.bundle.contract.guidance == "concat" and scale <= 1:
        raise UsageError(
            f"guidance_scale must be above 1, got {scale:g}: the bundle is made for guidance; without guidance, make a "
            "schedule with guidance layout none"
        )


def _draw(pipeline: Any, prompts: Sequence[str], seed: int, arguments: dict[str, Any]) -> np.ndarray:
    if isinstance(negative := arguments.get("negative_prompt"), str):
        arguments = {**arguments, "negative_prompt": [negative] * len(prompts)}
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    output = pipeline(prompt=list(prompts), generator=generators, **arguments)
    images = getattr(output, "images", None)
    if arguments["output_type"] == "latent":
        latents = output.frames if images is None else images
        return np.asarray(latents.float().cpu().numpy(), np.float32)
    if images is None:
        raise _no_images(pipeline)
    return np.asarray(images, np.float32).transpose(0, 3, 1, 2) * 2 - 1


def _no_images(pipeline: Any) -> UsageError:
    return UsageError(
        f"{type(pipeline).__name__} makes no images: ask for latents, or call the pipeline from Python, see "
        "load_pipeline"
    )

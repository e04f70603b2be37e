"""Images of prompts, drawn by the pipeline of a bundle. Image i takes its own generator, seeded ``seed + i``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.runtime.dropin.denoiser import DeployedDenoiser
from dipgo_deploy.runtime.dropin.part_times import PartTimes, timed_parts
from dipgo_deploy.runtime.dropin.pipeline import call_arguments, load_pipeline
from dipgo_deploy.runtime.dropin.stepping import StepOptions
from dipgo_deploy.runtime.memory import check_device

__all__ = ["Drawn", "PromptOptions", "draw_prompts"]


@dataclass(frozen=True)
class PromptOptions:
    """What to draw: ``count`` images of every prompt, ``batch`` at a time; None leaves a value to the pipeline.

    ``run`` says where the denoiser's graphs run; the rest of the pipeline runs on the same device.
    """

    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    seed: int = 0
    count: int = 1
    guidance_scale: float | None = None
    batch: int = 8
    run: StepOptions = field(default_factory=StepOptions)


@dataclass(frozen=True)
class Drawn:
    """Images (N, C, H, W) in [-1, 1], float32, prompt by prompt, and the seconds that they took, graphs loaded."""

    images: np.ndarray
    times: PartTimes


def draw_prompts(folder: Path, options: PromptOptions) -> Drawn:
    """Draw with the pipeline of a bundle folder.

    Raises UsageError for options that the pipeline or its contract has no place for, MissingError for a device that is
    not there, and what ``load_pipeline`` raises.
    """
    if not options.prompts or options.count < 1 or options.batch < 1:
        raise UsageError(f"{options.count} images of {len(options.prompts)} prompts make no sense: ask for 1 or more")
    check_device(options.run.device)
    pipeline = load_pipeline(folder, **asdict(options.run))
    if options.run.device == "cuda":
        pipeline.to("cuda", silence_dtype_warnings=True)
    pipeline.set_progress_bar_config(disable=True)
    denoiser = next(part for part in pipeline.components.values() if isinstance(part, DeployedDenoiser))
    arguments = _arguments(pipeline, denoiser, options)
    prompts = [prompt for prompt in options.prompts for _ in range(options.count)]
    batch = min(options.batch, len(prompts), denoiser.bundle.manifest.contract.batch.max)
    denoiser.prepare(batch=batch)
    with timed_parts(pipeline) as times:
        parts = [
            _draw(pipeline, _filled(prompts[start : start + batch], batch), options.seed + start, arguments)
            for start in range(0, len(prompts), batch)
        ]
    return Drawn(np.concatenate(parts)[: len(prompts)], times)


def _filled(prompts: Sequence[str], batch: int) -> list[str]:
    """The last batch with its last prompt repeated: graphs are loaded, and engines perhaps built, for one batch."""
    return [*prompts, *([prompts[-1]] * (batch - len(prompts)))]


def _arguments(pipeline: Any, denoiser: DeployedDenoiser, options: PromptOptions) -> dict[str, Any]:
    """The arguments of every call, as far as the pipeline takes them."""
    taken = inspect.signature(type(pipeline).__call__).parameters
    arguments = call_arguments(pipeline, denoiser.bundle.manifest.contract)
    wanted = {"prompt": options.prompts, "negative_prompt": options.negative_prompt}
    for name in (name for name, value in wanted.items() if value is not None and name not in taken):
        raise UsageError(f"{type(pipeline).__name__} takes no {name.replace('_', ' ')}: give classes, or leave it out")
    if options.guidance_scale is not None:
        _check_scale(options.guidance_scale, denoiser)
        if arguments.get("guidance_scale", options.guidance_scale) != options.guidance_scale:
            raise UsageError(
                f"a guidance scale of {options.guidance_scale:g} needs a bundle with guidance: leave it out"
            )
        arguments["guidance_scale"] = options.guidance_scale
    return arguments | ({} if options.negative_prompt is None else {"negative_prompt": options.negative_prompt})


def _check_scale(scale: float, denoiser: DeployedDenoiser) -> None:
    """UsageError for no scale, and for one at which a pipeline leaves out rows that the bundle's graphs take."""
    if not math.isfinite(scale):
        raise UsageError(f"a guidance scale of {scale:g} is not finite: give a number such as 4.0")
    if denoiser.bundle.manifest.contract.guidance == "concat" and scale <= 1:
        raise UsageError(
            f"a guidance scale of {scale:g} turns guidance off, and the bundle is made for guidance: give a number "
            "above 1, or search with --guidance none"
        )


def _draw(pipeline: Any, prompts: Sequence[str], seed: int, arguments: dict[str, Any]) -> np.ndarray:
    given = dict(arguments)
    if isinstance(given.get("negative_prompt"), str):
        given["negative_prompt"] = [given["negative_prompt"]] * len(prompts)
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    made = pipeline(prompt=list(prompts), generator=generators, output_type="np", **given)
    if not hasattr(made, "images"):
        raise UsageError(f"{type(pipeline).__name__} makes no images: call the pipeline from Python, see load_pipeline")
    return np.asarray(made.images, np.float32).transpose(0, 3, 1, 2) * 2 - 1

"""Where a pipeline's time goes: text encoders, denoiser, VAE, and what is left.

Images of prompts, drawn by the pipeline of a bundle. Image i takes its own generator, seeded ``seed + i``.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.pipeline.denoiser import DeployedDenoiser
from dipgo_deploy.pipeline.load import call_arguments, load_pipeline
from dipgo_deploy.runtime.memory import check_device

__all__ = ["Drawn", "PartTimes", "PromptOptions", "draw_prompts", "timed_parts"]


_DENOISERS = ("unet", "transformer", "transformer_2")


@dataclass
class PartTimes:
    """Seconds of one or more calls of a pipeline, added up; ``total`` is the whole, set at the end."""

    text_encoder: float = 0.0
    denoiser: float = 0.0
    vae: float = 0.0
    total: float = 0.0
    _began: list[float] = field(default_factory=list, repr=False)

    @property
    def rest(self) -> float:
        """The scheduler, tokenizers, conversions and the pipeline itself."""
        return self.total - self.text_encoder - self.denoiser - self.vae

    def as_dict(self) -> dict[str, float]:
        """Seconds by part."""
        return {name: getattr(self, name) for name in ("text_encoder", "denoiser", "vae", "rest", "total")}

    def begin(self, *_: Any) -> None:
        """A part begins."""
        self._began.append(_now())

    def end(self, part: str, *_: Any) -> None:
        """The part that began last ends."""
        setattr(self, part, getattr(self, part) + _now() - self._began.pop())


def _now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def timed_parts(pipeline: Any) -> Iterator[PartTimes]:
    """Time the components of a diffusers pipeline inside the context; hooks and wrappers are gone on exit."""
    times = PartTimes()
    with ExitStack() as stack:
        for name, component in pipeline.components.items():
            if name == "vae" and component is not None:
                stack.enter_context(_wrapped(component, "decode", times))
            elif name in _DENOISERS or name.startswith("text_encoder"):
                part = "denoiser" if name in _DENOISERS else "text_encoder"
                if isinstance(component, torch.nn.Module):
                    stack.callback(component.register_forward_pre_hook(times.begin).remove)
                    stack.callback(component.register_forward_hook(partial(times.end, part)).remove)
        began = _now()
        try:
            yield times
        finally:
            times.total += _now() - began


@contextmanager
def _wrapped(component: Any, method: str, times: PartTimes) -> Iterator[None]:
    """Time a method that is no forward, for as long as the context lasts."""
    own: Callable[..., Any] = getattr(component, method)

    def timed(*args: Any, **kwargs: Any) -> Any:
        times.begin()
        try:
            return own(*args, **kwargs)
        finally:
            times.end("vae")

    setattr(component, method, timed)
    try:
        yield
    finally:
        delattr(component, method)


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
    run: RunOptions = RunOptions()


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
    for name, value in {"prompts": len(options.prompts), "count": options.count, "batch": options.batch}.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
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
            "above 1, or make a schedule with guidance layout none"
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

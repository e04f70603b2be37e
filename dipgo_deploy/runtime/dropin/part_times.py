"""Where a pipeline's time goes: text encoders, denoiser, VAE, and what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

__all__ = ["PartTimes", "timed_parts"]

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

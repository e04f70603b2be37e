"""Time the parts of a diffusers pipeline: text encoders, denoiser, VAE, and the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

__all__ = ["PartTimes", "time_parts"]

_DENOISERS = ("unet", "transformer", "transformer_2")


@dataclass
class PartTimes:
    """Seconds by part, summed over the calls of a pipeline. ``total`` is set at the end."""

    text_encoder: float = 0.0
    denoiser: float = 0.0
    vae: float = 0.0
    total: float = 0.0
    _began: list[float] = field(default_factory=list, repr=False)

    @property
    def rest(self) -> float:
        """Seconds of the scheduler, the tokenizers, conversions and the pipeline itself."""
        return self.total - self.text_encoder - self.denoiser - self.vae

    def as_dict(self) -> dict[str, float]:
        """Seconds by part."""
        return {name: getattr(self, name) for name in ("text_encoder", "denoiser", "vae", "rest", "total")}

    def begin(self, *_: Any) -> None:
        """Note that a part begins."""
        self._began.append(_now())

    def end(self, part: str, *_: Any) -> None:
        """Note that the part which began last ends."""
        setattr(self, part, getattr(self, part) + _now() - self._began.pop())


def _now() -> float:
    """Seconds on the host's clock, after the GPU has finished its queued work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def time_parts(pipeline: Any) -> Iterator[PartTimes]:
    """Time the components of a diffusers pipeline inside the context. Hooks and wrappers are removed on exit."""
    times = PartTimes()
    with ExitStack() as stack:
        for name, component in pipeline.components.items():
            if name == "vae" and component is not None:
                stack.enter_context(_timed_decode(component, times))
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
def _timed_decode(vae: Any, times: PartTimes) -> Iterator[None]:
    """Time ``vae.decode``. Hooks do not see it, because it is not a forward."""
    decode: Callable[..., Any] = vae.decode

    def timed(*args: Any, **kwargs: Any) -> Any:
        times.begin()
        try:
            return decode(*args, **kwargs)
        finally:
            times.end("vae")

    vae.decode = timed
    try:
        yield
    finally:
        del vae.decode

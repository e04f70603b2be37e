"""Two clocks behind one interface: the host's, and on a GPU CUDA events, which nobody has to wait for.

A mark is set between calls; how much time lies between two marks is asked when all is done.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

__all__ = ["Clock", "CudaClock", "HostClock", "clock_for"]


class Clock(Protocol):
    """Marks points of time on the machine that does the work."""

    def mark(self) -> Any:
        """Now, or as soon as the work queued so far is done."""
        ...

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Milliseconds from one mark to a later one."""
        ...


class HostClock:
    """Wall time of the host: for work that is done when its call returns."""

    def mark(self) -> float:
        """Seconds."""
        return time.perf_counter()

    def elapsed_ms(self, first: float, second: float) -> float:
        """See Clock."""
        return 1e3 * (second - first)


class CudaClock:
    """CUDA events on PyTorch's current stream."""

    def mark(self) -> Any:
        """A recorded event."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """See Clock. Waits until the second mark is reached."""
        second.synchronize()
        return float(first.elapsed_time(second))


def clock_for(device: str) -> Clock:
    """The clock of ``cpu`` or ``cuda``."""
    return CudaClock() if device == "cuda" else HostClock()

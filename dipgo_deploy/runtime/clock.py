"""Two clocks behind one interface: wall time of the host, and CUDA events, which do not wait for the GPU.

Callers set marks between calls. They ask for the time between two marks after all work is queued.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

__all__ = ["Clock", "CudaClock", "HostClock", "clock_for"]


class Clock(Protocol):
    """Marks points in time on the machine that does the work."""

    def mark(self) -> Any:
        """Now, or the moment at which the work that is queued so far is done."""
        ...

    def elapsed_ms(self, first: Any, second: Any) -> float:
        """Milliseconds between two marks.

        Args:
            first: the earlier mark.
            second: the later mark.
        """
        ...


class HostClock:
    """Wall time of the host, for work that is done when its call returns."""

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
    """The clock for ``cpu`` or ``cuda``."""
    return CudaClock() if device == "cuda" else HostClock()

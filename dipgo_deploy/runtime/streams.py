"""The CUDA stream that a backend queues its calls on, and CUDA graphs of whole programs.

All calls of a trajectory go to one stream, so no call waits for another. Only a read of a result waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.runtime.backend import BoundCall

__all__ = ["WorkStream", "capture"]


class WorkStream:
    """A CUDA stream next to PyTorch's own stream. On the CPU it does nothing.

    Args:
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"

    @cached_property
    def stream(self) -> Any:
        """The stream as a PyTorch object, made on first use. None on the CPU."""
        return torch.cuda.Stream() if self._on_gpu else None

    @property
    def handle(self) -> int:
        """The stream as the number that other libraries take. 0 on the CPU."""
        return 0 if self.stream is None else int(self.stream.cuda_stream)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this stream current.

        Work inside starts after all work that the surrounding stream holds. The surrounding stream continues after it.
        """
        if self.stream is None:
            yield
            return
        outside = torch.cuda.current_stream()
        self.stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outside.wait_stream(self.stream)


def capture(calls: Sequence[BoundCall], stream: WorkStream | None = None) -> BoundCall:
    """Capture calls as one CUDA graph.

    Args:
        calls: in order. Every call has run before, so none allocates memory.
        stream: where the calls are queued. None takes PyTorch's own stream.

    Returns:
        A call that replays the graph.

    Raises:
        InputError: a call cannot be captured, because it waits for the device or its shapes change.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, stream=None if stream is None else stream.stream):
            for call in calls:
                call()
    except RuntimeError as error:
        raise InputError(
            f"the program cannot become a CUDA graph ({first_line(error)}): run it without cuda_graph"
        ) from error
    replay: BoundCall = graph.replay
    return replay

"""The stream that a backend's calls are queued on, and a whole program as one CUDA graph.

Calls of a trajectory go to one stream and wait for nothing; only who reads a result waits.
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
    """A CUDA stream beside PyTorch's own; on the CPU nothing at all. ``handle`` is what other libraries are given."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"

    @cached_property
    def stream(self) -> Any:
        """PyTorch's stream, made when it is first needed; None on the CPU."""
        return torch.cuda.Stream() if self._on_gpu else None

    @property
    def handle(self) -> int:
        """The stream as a number; 0 on the CPU."""
        return 0 if self.stream is None else int(self.stream.cuda_stream)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Queue on this stream inside, after what the surrounding stream holds; that one goes on after it."""
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


def capture(acts: Sequence[BoundCall], stream: WorkStream | None = None) -> BoundCall:
    """One CUDA graph of ``acts``, which have run before and so allocate nothing; made on ``stream``, if one is given.

    Raises InputError where one of them cannot be captured: it waits for the device, or its shapes change.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph, stream=None if stream is None else stream.stream):
            for act in acts:
                act()
    except RuntimeError as error:
        raise InputError(
            f"the program cannot become a CUDA graph ({first_line(error)}): run it without cuda_graph"
        ) from error
    replay: BoundCall = graph.replay
    return replay

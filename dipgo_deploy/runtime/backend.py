"""What the interpreter needs of a backend: memory for slots, and the calls of a program bound to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from dipgo_deploy.core.program import Combine, Run
from dipgo_deploy.core.tensors import TensorSpec

__all__ = ["BoundCall", "Backend", "Memory"]

BoundCall = Callable[[], None]
"""A call bound to its buffers: running it is all that is left."""


class Memory(Protocol):
    """Slot buffers of one kind of memory, and arithmetic on them."""

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Any:
        """A buffer for ``spec``, filled with NaN (integers: 0), so that a read before a write is seen."""
        ...

    def write(self, buffer: Any, array: np.ndarray) -> None:
        """Copy ``array`` (the buffer's shape) into the buffer, cast to its dtype."""
        ...

    def read(self, buffer: Any) -> np.ndarray:
        """A copy of the buffer (bfloat16 as float32)."""
        ...

    def bind_combine(self, combine: Combine, buffers: Mapping[str, Any], guidance_scale: float) -> BoundCall:
        """The linear combination, bound to the buffers of its slots. Raises InputError where shapes do not fit."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """What the calls of a run are made in: where there is a stream, it is queued on."""
        ...

    def captured(self, acts: Sequence[BoundCall]) -> BoundCall:
        """All of ``acts``, which have run before, as one. Raises UsageError where the backend knows no such thing."""
        ...


class Backend(Memory, Protocol):
    """Memory that can also run the graphs of a program."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    def bind_run(self, run: Run, buffers: Mapping[str, Any], sizes: Mapping[str, int]) -> BoundCall:
        """The graph call, bound to the buffers of its slots; ``sizes`` gives ``batch`` and ``rows``.

        Raises InputError where the graph is damaged or does not fit the run.
        """
        ...

"""Backend and Memory: what a session needs in order to run a program, as protocols.

A session allocates one buffer for each slot and binds every call once. After that, running a program means calling
the bound calls in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from dipgo_deploy.core.program import Combine, Run
from dipgo_deploy.core.tensors import TensorSpec

__all__ = ["BoundCall", "Backend", "Memory"]

BoundCall = Callable[[], None]
"""A call of a program, bound to the buffers that it reads and writes."""


class Memory(Protocol):
    """Slot buffers in one kind of memory, and arithmetic on them."""

    def allocate(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Any:
        """Allocate a buffer. It holds NaN (integers: 0), which shows a read before the first write.

        Args:
            spec: shape and dtype of the slot.
            sizes: values of the symbols.

        Returns:
            An array or tensor of the backend.
        """
        ...

    def write(self, buffer: Any, array: np.ndarray) -> None:
        """Copy an array into a buffer.

        Args:
            buffer: from ``allocate``.
            array: of the buffer's shape. Its values are cast to the buffer's dtype.
        """
        ...

    def read(self, buffer: Any) -> np.ndarray:
        """A copy of the buffer, with bfloat16 as float32."""
        ...

    def bind_combine(self, combine: Combine, buffers: Mapping[str, Any], guidance_scale: float) -> BoundCall:
        """Bind a linear combination to the buffers of its slots.

        Args:
            combine: the combination.
            buffers: by slot.
            guidance_scale: weight of the conditional output.

        Returns:
            The bound call.

        Raises:
            InputError: shapes do not fit.
        """
        ...

    def running(self) -> AbstractContextManager[None]:
        """The context in which bound calls are made. It makes the backend's CUDA stream current, if there is one."""
        ...

    def capture(self, calls: Sequence[BoundCall]) -> BoundCall:
        """Capture calls as one CUDA graph. Every call has run before, so none allocates memory.

        Raises UsageError if the backend or the device has no CUDA graphs.
        """
        ...


class Backend(Memory, Protocol):
    """Memory that can also run the graphs of a program."""

    @property
    def name(self) -> str:
        """The name that RunOptions and the command line use."""
        ...

    def bind_run(self, run: Run, buffers: Mapping[str, Any], sizes: Mapping[str, int]) -> BoundCall:
        """Bind a graph call to the buffers of its slots.

        Args:
            run: the graph call.
            buffers: by slot.
            sizes: values of the symbols.

        Returns:
            The bound call.

        Raises:
            InputError: the graph is damaged or does not fit the run.
        """
        ...

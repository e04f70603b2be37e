"""Several processes that learn one sampler: each takes a part of every batch, and gradients are averaged.

``accelerate launch`` starts them. A single process needs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from dipgo_deploy.core.errors import UsageError

__all__ = ["Workers"]


class Workers:
    """The processes of one search. All hold the same numbers, and all make the same decisions."""

    def __init__(self, cpu: bool) -> None:
        self._state = PartialState(cpu=cpu)

    @property
    def count(self) -> int:
        """Number of processes."""
        return int(self._state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return bool(self._state.is_main_process)

    def part(self, indices: Sequence[int]) -> list[int]:
        """The share of a batch that this process takes. Raises UsageError where the batch cannot be divided equally."""
        if len(indices) % self.count:
            raise UsageError(f"a batch of {len(indices)} images is not divisible by {self.count} processes: change it")
        return list(indices)[self._state.process_index :: self.count]

    def average(self, gradients: Iterable[torch.Tensor | None]) -> None:
        """Average tensors over the processes, in place."""
        if self.count == 1:
            return
        for gradient in gradients:
            if gradient is not None:
                gradient.copy_(reduce(gradient, reduction="mean"))

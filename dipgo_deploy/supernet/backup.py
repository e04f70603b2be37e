"""Backup connections: what a reused block stands on.

Of every block the features (or residuals) of its last computed steps are kept, as many as any of its forecasts needs. A
reused block returns their linear combination, nested as its own forward nests it; for residuals, added to its input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.liveness import residual_name
from dipgo_deploy.core.schedule import HOLD, Schedule
from dipgo_deploy.supernet.features import FeatureTemplate, flatten_feature

__all__ = ["BackupStore", "block_input", "linear_combination"]


def block_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """What enters a block: its first tensor argument, positional ones before named ones; None without any."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def linear_combination(tensors: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """``sum_j coefficients[j] * tensors[j]`` in the tensors' dtype, accumulated in float32 or wider.

    Holding one tensor is exact. The result is always new memory.
    """
    if tuple(coefficients) == HOLD:
        return tensors[0].clone()
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    total = tensors[0].to(wide) * coefficients[0]
    for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
        total = total + tensor.to(wide) * coefficient
    return total.to(tensors[0].dtype)


class BackupStore:
    """Features of computed steps under one schedule, and the backups built from them."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._depth = {block: 1 for block in schedule.blocks}
        for (_, block), coefficients in schedule.forecasts.items():
            self._depth[block] = max(self._depth[block], len(coefficients))
        self._kept: dict[str, dict[int, list[torch.Tensor]]] = {block: {} for block in schedule.blocks}
        self._templates: dict[str, FeatureTemplate] = {}
        self._residual: set[str] = set()

    def fork(self, schedule: Schedule) -> BackupStore:
        """A store with the same features that goes on under ``schedule``; neither changes the other."""
        other = BackupStore(schedule)
        other._kept = {block: dict(steps) for block, steps in self._kept.items()}
        other._templates, other._residual = dict(self._templates), set(self._residual)
        return other

    def keep(self, step: int, block: str, feature: Any, entry: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Keep the ``feature`` that ``block`` computed at ``step`` from its input ``entry``.

        A residual is kept instead where the schedule's kind asks for it and the feature is one tensor, of the shape and
        dtype of ``entry`` but not ``entry`` itself. Returns what was kept by its stored name (``<block>:<k>``,
        ``<block>:residual`` or ``prediction``).
        """
        tensors, self._templates[block] = flatten_feature(feature)
        if self._schedule.kind == "residual" and entry is not None and _is_one_like(tensors, entry):
            self._residual.add(block)
            kept = [tensors[0] - entry]
            names = [residual_name(block)]
        else:
            # Cloned: what comes after a block may write to its output in place.
            kept = [tensor.clone() for tensor in tensors]
            names = [PREDICTION] if block == PREDICTION else [f"{block}:{index}" for index in range(len(kept))]
        steps = self._kept[block]
        steps[step] = kept
        for old in sorted(steps)[: -self._depth[block]]:
            del steps[old]
        return dict(zip(names, kept, strict=True))

    def backup(self, step: int, block: str, entry: torch.Tensor | None = None) -> Any:
        """What ``block`` returns at a ``step`` that reuses it; ``entry`` is its input there."""
        sources = self._schedule.sources(step, block)
        columns = zip(*(self._kept[block][source] for source, _ in sources), strict=True)
        tensors = [linear_combination(column, [c for _, c in sources]) for column in columns]
        if block in self._residual:
            tensors = [entry + tensors[0]]
        return self._templates[block].rebuild(tensors)


def _is_one_like(tensors: Sequence[torch.Tensor], entry: torch.Tensor) -> bool:
    one = tensors[0] if len(tensors) == 1 else entry
    return one is not entry and one.shape == entry.shape and one.dtype == entry.dtype

"""Backup connections: what a reused block returns.

1. A feature is everything that a block's forward returns, as a flat list of distinct tensors with a template to rebuild
   the nesting.
2. For every block the features (or residuals) of its last computed steps are kept, as many as its forecasts need.
3. A reused block returns the linear combination of kept features, nested as its forward nests them. A residual is added
   to the block's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.liveness import residual_name
from dipgo_deploy.core.schedule import HOLD, Schedule

__all__ = ["BackupStore", "FeatureTemplate", "block_input", "flatten_feature", "linear_combination"]


@dataclass(frozen=True)
class FeatureTemplate:
    """How to rebuild a block's return value: its nesting, and which tensor or constant each leaf is.

    Attributes:
        spec: the nesting.
        leaves: index of the tensor at each leaf, None for a constant.
        constants: the constant at each leaf, None for a tensor.
    """

    spec: Any
    leaves: tuple[int | None, ...]
    constants: tuple[Any, ...]

    def rebuild(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The block's return value made of ``tensors``, distinct and in order."""
        filled = [c if i is None else tensors[i] for i, c in zip(self.leaves, self.constants, strict=True)]
        return pytree.tree_unflatten(filled, self.spec)


def flatten_feature(output: Any) -> tuple[list[torch.Tensor], FeatureTemplate]:
    """Distinct tensors of a block's return value, and the template that rebuilds it.

    A U-Net stage returns its hidden state twice, alone and as the last skip connection. That tensor is kept once.
    """
    leaves, spec = pytree.tree_flatten(output)
    tensors: list[torch.Tensor] = []
    indices: list[int | None] = []
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            indices.append(None)
            continue
        same = [i for i, tensor in enumerate(tensors) if tensor is leaf]
        if not same:
            tensors.append(leaf)
        indices.append(same[0] if same else len(tensors) - 1)
    constants = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    return tensors, FeatureTemplate(spec, tuple(indices), constants)


def block_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The input of a block: its first tensor argument, positional arguments first. None without a tensor argument."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)


def linear_combination(tensors: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """``sum_j coefficients[j] * tensors[j]``, accumulated in float32 or wider. Holding one tensor is exact.

    Args:
        tensors: of one shape and dtype.
        coefficients: as many as tensors.

    Returns:
        A new tensor in the dtype of ``tensors``.
    """
    if tuple(coefficients) == HOLD:
        return tensors[0].clone()
    accumulator = torch.promote_types(tensors[0].dtype, torch.float32)
    total = tensors[0].to(accumulator) * coefficients[0]
    for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
        total = total + tensor.to(accumulator) * coefficient
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
        """A store with the same features that continues under ``schedule``. Neither store changes the other."""
        other = BackupStore(schedule)
        other._kept = {block: dict(steps) for block, steps in self._kept.items()}
        other._templates, other._residual = dict(self._templates), set(self._residual)
        return other

    def keep(self, step: int, block: str, feature: Any, entry: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Keep a computed feature, or its residual.

        A residual is kept if the schedule's kind is ``residual`` and the feature is a single tensor like ``entry``.

        Args:
            step: at which the block was computed.
            block: its name.
            feature: what its forward returned.
            entry: its input.

        Returns:
            The kept tensors by stored name (``<block>:<k>``, ``<block>:residual`` or ``prediction``).
        """
        tensors, self._templates[block] = flatten_feature(feature)
        if self._schedule.kind == "residual" and entry is not None and _is_single_like(tensors, entry):
            self._residual.add(block)
            kept = [tensors[0] - entry]
            names = [residual_name(block)]
        else:
            # Cloned, because later layers may write to a block's output in place.
            kept = [tensor.clone() for tensor in tensors]
            names = [PREDICTION] if block == PREDICTION else [f"{block}:{index}" for index in range(len(kept))]
        steps = self._kept[block]
        steps[step] = kept
        for old in sorted(steps)[: -self._depth[block]]:
            del steps[old]
        return dict(zip(names, kept, strict=True))

    def backup(self, step: int, block: str, entry: torch.Tensor | None = None) -> Any:
        """What a reused block returns.

        Args:
            step: at which the block is reused.
            block: its name.
            entry: its input at ``step``.

        Returns:
            A feature with the nesting of the block's forward.
        """
        sources = self._schedule.sources(step, block)
        columns = zip(*(self._kept[block][source] for source, _ in sources), strict=True)
        tensors = [linear_combination(column, [c for _, c in sources]) for column in columns]
        if block in self._residual:
            tensors = [entry + tensors[0]]
        return self._templates[block].rebuild(tensors)


def _is_single_like(tensors: Sequence[torch.Tensor], entry: torch.Tensor) -> bool:
    """Whether a feature is a single tensor of the shape and dtype of ``entry``, and not ``entry`` itself."""
    if len(tensors) != 1 or tensors[0] is entry:
        return False
    return tensors[0].shape == entry.shape and tensors[0].dtype == entry.dtype

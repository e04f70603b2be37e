"""Features: everything a block's forward returns, as a flat list of distinct tensors and a way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["FeatureTemplate", "flatten_feature"]


@dataclass(frozen=True)
class FeatureTemplate:
    """How to rebuild a block's return value: its nesting, and which tensor (or constant) stands at each leaf."""

    spec: Any
    leaves: tuple[int | None, ...]
    constants: tuple[Any, ...]

    def rebuild(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The block's return value with ``tensors`` (distinct, in order) in place."""
        filled = [c if i is None else tensors[i] for i, c in zip(self.leaves, self.constants, strict=True)]
        return pytree.tree_unflatten(filled, self.spec)


def flatten_feature(output: Any) -> tuple[list[torch.Tensor], FeatureTemplate]:
    """Distinct tensors of a block's return value, and the template that rebuilds it.

    A U-Net stage returns its hidden state twice, alone and as the last of its skip connections: one tensor, kept once.
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

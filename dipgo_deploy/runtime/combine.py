"""Linear combinations of slots, in NumPy and in PyTorch.

1. A term is a view: of all rows or one half, of all channels or the first ones.
2. Its coefficient is ``constant + guided * scale``, rounded once to the accumulator's dtype.
3. The sum is accumulated in float32 (float64 as soon as one slot is float64), then cast to the target, copy by copy. So
   the target may be one of the terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Combine, Half, Term
from dipgo_deploy.runtime.backend import Act

__all__ = ["bind_numpy_combine", "bind_torch_combine"]


def bind_numpy_combine(combine: Combine, buffers: Mapping[str, np.ndarray], guidance_scale: float) -> Act:
    """The combination over arrays. Raises InputError where the shapes of terms and target do not fit."""
    (first, c_first), *rest = _terms(combine, buffers, guidance_scale)
    parts = _parts(combine, buffers[combine.target], first.shape)
    is_double = any(array.dtype == np.float64 for array in (first, *parts, *(view for view, _ in rest)))
    wide = np.dtype(np.float64 if is_double else np.float32)
    total, product = np.empty(first.shape, wide), np.empty(first.shape, wide)

    def act() -> None:
        np.multiply(first, c_first, out=total, dtype=wide)
        for view, c in rest:
            np.multiply(view, c, out=product, dtype=wide)
            np.add(total, product, out=total)
        for part in parts:
            np.copyto(part, total, casting="same_kind")

    return act


def bind_torch_combine(combine: Combine, buffers: Mapping[str, torch.Tensor], guidance_scale: float) -> Act:
    """The combination over tensors of one device. Raises InputError where shapes do not fit."""
    (first, c_first), *rest = _terms(combine, buffers, guidance_scale)
    parts = _parts(combine, buffers[combine.target], first.shape)
    is_double = any(tensor.dtype == torch.float64 for tensor in (first, *parts, *(view for view, _ in rest)))
    total = torch.empty(first.shape, dtype=torch.float64 if is_double else torch.float32, device=first.device)

    def act() -> None:
        # Copied first: the product of a half-precision tensor and a number would be rounded to half precision.
        total.copy_(first).mul_(c_first)
        for view, c in rest:
            total.add_(view, alpha=c)
        for part in parts:
            part.copy_(total)

    return act


def _terms(combine: Combine, buffers: Mapping[str, Any], scale: float) -> list[tuple[Any, float]]:
    if not combine.terms:
        raise InputError(f"the combination into {combine.target} at step {combine.step} has no terms: export anew")
    terms = [(_view(buffers[term.slot], term), term.constant + term.guided * scale) for term in combine.terms]
    for term, (view, _) in zip(combine.terms, terms, strict=True):
        if view.shape != terms[0][0].shape:
            raise InputError(
                f"the combination into {combine.target} at step {combine.step} adds shapes {_text(terms[0][0])} and "
                f"{_text(view)} (slot {term.slot}): export anew"
            )
    return terms


def _view(buffer: Any, term: Term) -> Any:
    rows = buffer[_rows(term.half, len(buffer))]
    return rows if term.channels is None else rows[:, : term.channels]


def _rows(half: Half, count: int) -> slice:
    middle = count // 2
    return {"all": slice(None), "first": slice(middle), "second": slice(middle, None)}[half]


def _parts(combine: Combine, target: Any, shape: tuple[int, ...]) -> list[Any]:
    """The equal parts of the target's rows that each take a copy of the sum."""
    wanted = (combine.copies * shape[0], *shape[1:])
    if tuple(target.shape) != wanted:
        raise InputError(
            f"the combination into {combine.target} at step {combine.step} gives shape {wanted}, but the slot has "
            f"{_text(target)}: export anew"
        )
    return [target[i * shape[0] : (i + 1) * shape[0]] for i in range(combine.copies)]


def _text(buffer: Any) -> str:
    return str(tuple(buffer.shape))

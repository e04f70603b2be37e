"""Operators of diffusers that torch.onnx cannot follow with a dynamic batch, each with an equal in its place.

They stand in only while a model is exported; the test of each compares it with the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["exportable", "mask_for_heads"]


@contextmanager
def exportable() -> Iterator[None]:
    """Replace them inside the context.

    ``Attention.prepare_attention_mask``: its ``repeat_interleave`` over the batch makes the number of rows a number
    that the exporter cannot divide by again (PixArt).
    """
    from diffusers.models.attention_processor import Attention  # noqa: TID251 - the home of diffusers

    own = Attention.prepare_attention_mask
    Attention.prepare_attention_mask = _prepare_attention_mask  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Attention.prepare_attention_mask = own  # type: ignore[method-assign]


def _prepare_attention_mask(
    attention: torch.nn.Module, mask: torch.Tensor | None, target_length: int, batch_size: int, out_dim: int = 3
) -> torch.Tensor | None:
    heads = int(attention.heads)  # type: ignore[arg-type]
    return None if mask is None else mask_for_heads(mask, batch_size, heads, target_length, out_dim)


def mask_for_heads(mask: torch.Tensor, rows: int, heads: int, length: int, out_dim: int = 3) -> torch.Tensor:
    """A mask (rows, 1, tokens) once for each head: (rows × heads, 1, length), or (rows, heads, 1, length) in four.

    Tokens that are missing up to ``length`` are padded with 0 as in the original, which adds ``length`` of them.
    """
    if mask.shape[-1] != length:
        mask = torch.nn.functional.pad(mask, (0, length), value=0.0)
    each = mask.unsqueeze(1).expand(rows, heads, -1, -1)
    return each if out_dim == 4 else each.reshape(rows * heads, *mask.shape[1:])

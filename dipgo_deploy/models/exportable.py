"""Replacements for operators of diffusers that torch.onnx cannot export with a dynamic batch.

They are active only while a model is exported. Tests compare each replacement with the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["exportable", "mask_for_heads"]


@contextmanager
def exportable() -> Iterator[None]:
    """Replace these operators inside the context:

    1. ``Attention.prepare_attention_mask`` repeats its mask over the batch by ``repeat_interleave``. The exporter
       cannot split the repeated rows again (PixArt).
    """
    from diffusers.models.attention_processor import Attention  # noqa: TID251 - the home of diffusers

    original = Attention.prepare_attention_mask
    Attention.prepare_attention_mask = _prepare_attention_mask  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Attention.prepare_attention_mask = original  # type: ignore[method-assign]


def _prepare_attention_mask(
    attention: torch.nn.Module, mask: torch.Tensor | None, target_length: int, batch_size: int, out_dim: int = 3
) -> torch.Tensor | None:
    heads = int(attention.heads)  # type: ignore[arg-type]
    return None if mask is None else mask_for_heads(mask, batch_size, heads, target_length, out_dim)


def mask_for_heads(mask: torch.Tensor, rows: int, heads: int, length: int, out_dim: int = 3) -> torch.Tensor:
    """Repeat an attention mask for each head.

    Args:
        mask: (rows, 1, tokens).
        rows: rows of the result's batch.
        heads: number of heads.
        length: number of tokens. A shorter mask is padded with ``length`` zeros, as in diffusers.
        out_dim: 3 or 4 dimensions of the result.

    Returns:
        (rows × heads, 1, length), or (rows, heads, 1, length).
    """
    if mask.shape[-1] != length:
        mask = torch.nn.functional.pad(mask, (0, length), value=0.0)
    repeated = mask.unsqueeze(1).expand(rows, heads, -1, -1)
    return repeated if out_dim == 4 else repeated.reshape(rows * heads, *mask.shape[1:])

"""What stands in for an operator during an export gives what the operator gives, and leaves when the export ends."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention

from dipgo_deploy.models.exportable import exportable


@pytest.mark.parametrize("out_dim", [3, 4])
@pytest.mark.parametrize("length", [7, 5])
def test_masks_for_heads_equal_diffusers_own(out_dim: int, length: int) -> None:
    attention, mask = Attention(12, heads=3, dim_head=4), torch.randn(2, 1, 5)
    own = attention.prepare_attention_mask(mask, length, 2, out_dim)
    with exportable():
        assert torch.equal(attention.prepare_attention_mask(mask, length, 2, out_dim), own)
        assert attention.prepare_attention_mask(None, length, 2) is None


def test_diffusers_is_as_before_afterwards() -> None:
    before = Attention.prepare_attention_mask
    with pytest.raises(ZeroDivisionError), exportable():
        assert Attention.prepare_attention_mask is not before
        raise ZeroDivisionError
    assert Attention.prepare_attention_mask is before

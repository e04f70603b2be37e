"""The conditioning of `digits-unet`: a learned table from class index to cross-attention tokens.

The table takes the place of a text encoder, so a pipeline with `UNet2DConditionModel` and cross-attention can be
shipped and tested without a text encoder. Saved pipelines name this module: it must not move.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: TID251 - the home of diffusers
from diffusers.models.modeling_utils import ModelMixin  # noqa: TID251 - the home of diffusers
from torch import nn

__all__ = ["ClassEmbedder"]


class ClassEmbedder(ModelMixin, ConfigMixin):
    """Turn class labels into `encoder_hidden_states` for a `UNet2DConditionModel`.

    Args:
        num_classes: number of real classes. The label `num_classes` is the null class, for the
            unconditional branch of classifier-free guidance.
        tokens: number of tokens per label, the sequence length the cross-attention sees.
        dim: channels per token, the U-Net's `cross_attention_dim`.
    """

    @register_to_config
    def __init__(self, num_classes: int = 10, tokens: int = 4, dim: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, tokens * dim)

    @property
    def null_label(self) -> int:
        """The label that means "no class", equal to `num_classes`."""
        return self.config.num_classes

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Look up one row of tokens per label.

        Args:
            labels: integer labels (B,), each in `0..num_classes`, both ends included.

        Returns:
            Tokens (B, tokens, dim) in the table's dtype.

        Raises:
            IndexError: a label lies outside the table.
        """
        return self.embedding(labels).unflatten(-1, (self.config.tokens, self.config.dim))

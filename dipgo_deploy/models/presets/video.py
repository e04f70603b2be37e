"""Transformers over frames: Wan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dipgo_deploy.models.presets.preset import Inputs, Preset, Shape, first_output

__all__ = ["WAN"]

_FRAMES, _HEIGHT, _WIDTH = 21, 60, 104
"""Latent size of 81 frames of 480 by 832 pixels; a Wan config names none."""


def _example(module: nn.Module, shape: Shape, rows: int, tokens: int) -> Inputs:
    config: Any = module.config
    return {
        "hidden_states": torch.randn(rows, *shape),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, tokens, config["text_dim"]),
    }


def _shape(config: Mapping[str, Any]) -> Shape:
    return int(config["in_channels"]), _FRAMES, _HEIGHT, _WIDTH


WAN = Preset(
    granularities={
        "stage": ("blocks.*",),
        "branch": tuple(f"blocks.*.{branch}" for branch in ("attn1", "attn2", "ffn")),
    },
    example=_example,
    forward=first_output,
    latent_shape=_shape,
    tokens=512,
)
"""``WanTransformer3DModel``, text to video."""

"""Transformers with one stream: DiT (class labels), PixArt and Wan (text in cross-attention)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dipgo_deploy.models.presets.preset import Inputs, Preset, Shape, first_output, square

__all__ = ["DIT", "PIXART", "WAN"]


_FRAMES, _HEIGHT, _WIDTH = 21, 60, 104
"""Latent size of 81 frames of 480 by 832 pixels. A Wan config has no size."""


def _dit_example(module: nn.Module, shape: Shape, rows: int, tokens: int) -> Inputs:
    config: Any = module.config
    return {
        "hidden_states": torch.randn(rows, *shape),
        "timestep": torch.full((rows,), 500.0),
        "class_labels": torch.arange(rows) % int(config["num_embeds_ada_norm"]),
    }


def _pixart_example(module: nn.Module, shape: Shape, rows: int, tokens: int) -> Inputs:
    config: Any = module.config
    inputs = {
        "hidden_states": torch.randn(rows, *shape),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, tokens, config["caption_channels"]),
        "encoder_attention_mask": torch.ones(rows, tokens),
    }
    if _has_sizes(module):
        height, width = 8.0 * shape[1], 8.0 * shape[2]
        inputs["resolution"] = torch.tensor([[height, width]]).repeat(rows, 1)
        inputs["aspect_ratio"] = torch.full((rows, 1), height / width)
    return inputs


def _has_sizes(module: Any) -> bool:
    """Whether the embedding has resolution and aspect ratio as inputs (PixArt-alpha at 1024 pixels)."""
    return bool(module.use_additional_conditions)


def _pixart_forward(module: nn.Module, **inputs: Any) -> torch.Tensor:
    added = {name: inputs.pop(name, None) for name in ("resolution", "aspect_ratio")}
    return first_output(module, added_cond_kwargs=added, **inputs)


def _wan_example(module: nn.Module, shape: Shape, rows: int, tokens: int) -> Inputs:
    config: Any = module.config
    return {
        "hidden_states": torch.randn(rows, *shape),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, tokens, config["text_dim"]),
    }


def _wan_shape(config: Mapping[str, Any]) -> Shape:
    return int(config["in_channels"]), _FRAMES, _HEIGHT, _WIDTH


DIT = Preset(
    granularities={
        "stage": ("transformer_blocks.*",),
        "branch": ("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
    },
    example=_dit_example,
    forward=first_output,
    latent_shape=square,
)
"""``DiTTransformer2DModel``."""

PIXART = Preset(
    granularities={
        "stage": ("transformer_blocks.*",),
        "branch": tuple(f"transformer_blocks.*.{branch}" for branch in ("attn1", "attn2", "ff")),
    },
    example=_pixart_example,
    forward=_pixart_forward,
    latent_shape=square,
    tokens=120,
    constant_inputs=("encoder_attention_mask", "resolution", "aspect_ratio"),
)
"""``PixArtTransformer2DModel``. PixArt-Sigma's pipelines give 300 tokens."""

WAN = Preset(
    granularities={
        "stage": ("blocks.*",),
        "branch": tuple(f"blocks.*.{branch}" for branch in ("attn1", "attn2", "ffn")),
    },
    example=_wan_example,
    forward=first_output,
    latent_shape=_wan_shape,
    tokens=512,
)
"""``WanTransformer3DModel``, text to video."""

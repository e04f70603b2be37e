"""What the project knows of each denoiser class: its block patterns, and its forward with named, flat inputs.

A preset is data and two small functions; no model file is copied. Patterns of a preset may match nothing in a given
configuration (a model without downsamplers has no blocks there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import UsageError

__all__ = ["PRESETS", "Preset", "patterns_for"]

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Preset:
    """Block patterns by granularity; ``example`` gives inputs for a number of rows; ``forward`` the output tensor.

    ``example(module, rows, tokens)`` returns tensors in call order, the latent first; ``latent_shape(config)`` is
    ``(C, H, W)``.
    """

    granularities: Mapping[str, tuple[str, ...]]
    example: Callable[[nn.Module, int, int], Inputs]
    forward: Callable[..., torch.Tensor]
    latent_shape: Callable[[Mapping[str, Any]], tuple[int, int, int]]


def _square(config: Mapping[str, Any]) -> tuple[int, int, int]:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return int(config["in_channels"]), int(height), int(width)


def _unet_example(module: nn.Module, rows: int, tokens: int) -> Inputs:
    config: Any = module.config
    channels, height, width = _square(config)
    return {
        "sample": torch.randn(rows, channels, height, width),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, tokens, config["cross_attention_dim"]),
    }


def _unet_forward(module: nn.Module, sample: torch.Tensor, timestep: torch.Tensor, **inputs: Any) -> torch.Tensor:
    output: torch.Tensor = module(sample, timestep, return_dict=False, **inputs)[0]
    return output


def _dit_example(module: nn.Module, rows: int, tokens: int) -> Inputs:
    config: Any = module.config
    channels, height, width = _square(config)
    return {
        "hidden_states": torch.randn(rows, channels, height, width),
        "timestep": torch.full((rows,), 500.0),
        "class_labels": torch.arange(rows) % int(config["num_embeds_ada_norm"]),
    }


def _dit_forward(module: nn.Module, hidden_states: torch.Tensor, timestep: torch.Tensor, **inputs: Any) -> torch.Tensor:
    output: torch.Tensor = module(hidden_states, timestep=timestep, return_dict=False, **inputs)[0]
    return output


_SAMPLERS = ("down_blocks.*.downsamplers.*", "up_blocks.*.upsamplers.*")
_RESNETS = ("down_blocks.*.resnets.*", "mid_block.resnets.*", "up_blocks.*.resnets.*")
_ATTENTIONS = ("down_blocks.*.attentions.*", "mid_block.attentions.*", "up_blocks.*.attentions.*")
_BRANCHES = ("attn1", "attn2", "ff")

PRESETS: Mapping[str, Preset] = {
    "UNet2DConditionModel": Preset(
        granularities={
            "stage": ("down_blocks.*", "mid_block", "up_blocks.*"),
            "layer": (*_RESNETS, *_ATTENTIONS, *_SAMPLERS),
            "branch": (
                *_RESNETS,
                *_SAMPLERS,
                *(f"{outer}.transformer_blocks.*.{branch}" for outer in _ATTENTIONS for branch in _BRANCHES),
            ),
        },
        example=_unet_example,
        forward=_unet_forward,
        latent_shape=_square,
    ),
    "DiTTransformer2DModel": Preset(
        granularities={
            "stage": ("transformer_blocks.*",),
            "branch": ("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
        },
        example=_dit_example,
        forward=_dit_forward,
        latent_shape=_square,
    ),
}
"""Preset of every supported diffusers denoiser class."""


def patterns_for(class_name: str, preset: Preset, granularity: str) -> tuple[str, ...]:
    """Block patterns of a granularity; UsageError where the class's ``preset`` has none of that name."""
    if granularity not in preset.granularities:
        raise UsageError(
            f"{class_name} has no granularity {granularity!r}: choose {' or '.join(preset.granularities)}, or give "
            "--blocks patterns"
        )
    return preset.granularities[granularity]

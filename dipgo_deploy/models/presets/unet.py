"""U-Nets: text-conditioned (Stable Diffusion 1, 2, XL) and plain (DDPM, latent diffusion)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dipgo_deploy.models.presets.preset import Inputs, Preset, Shape, first_output, square

__all__ = ["CONDITIONED", "PLAIN"]

_STAGES = ("down_blocks.*", "mid_block", "up_blocks.*")
_SAMPLERS = ("down_blocks.*.downsamplers.*", "up_blocks.*.upsamplers.*")
_RESNETS = ("down_blocks.*.resnets.*", "mid_block.resnets.*", "up_blocks.*.resnets.*")
_ATTENTIONS = ("down_blocks.*.attentions.*", "mid_block.attentions.*", "up_blocks.*.attentions.*")
_BRANCHES = ("attn1", "attn2", "ff")


def _example(module: nn.Module, shape: Shape, rows: int, tokens: int) -> Inputs:
    config: Any = module.config
    inputs = {
        "sample": torch.randn(rows, *shape),
        "timestep": torch.full((rows,), 500.0),
        "encoder_hidden_states": torch.randn(rows, tokens, config["cross_attention_dim"]),
    }
    if config.get("addition_embed_type") == "text_time":
        sizes = 6 * config["addition_time_embed_dim"]
        inputs["text_embeds"] = torch.randn(rows, config["projection_class_embeddings_input_dim"] - sizes)
        inputs["time_ids"] = _time_ids(shape).expand(rows, 6).clone()
    return inputs


def _time_ids(shape: Shape) -> torch.Tensor:
    """SDXL's micro-conditioning (6,) in pixels: original size, crop corner, target size. A latent pixel is 8 pixels."""
    height, width = 8.0 * shape[1], 8.0 * shape[2]
    return torch.tensor([height, width, 0.0, 0.0, height, width])


def _forward(module: nn.Module, **inputs: Any) -> torch.Tensor:
    added = {name: inputs.pop(name) for name in ("text_embeds", "time_ids") if name in inputs}
    if added:
        inputs["added_cond_kwargs"] = added
    return first_output(module, **inputs)


def _plain_example(module: nn.Module, shape: Shape, rows: int, tokens: int) -> Inputs:
    config: Any = module.config
    inputs = {"sample": torch.randn(rows, *shape), "timestep": torch.full((rows,), 500.0)}
    if config.get("num_class_embeds"):
        inputs["class_labels"] = torch.arange(rows) % int(config["num_class_embeds"])
    return inputs


CONDITIONED = Preset(
    granularities={
        "stage": _STAGES,
        "layer": (*_RESNETS, *_ATTENTIONS, *_SAMPLERS),
        "branch": (
            *_RESNETS,
            *_SAMPLERS,
            *(f"{outer}.transformer_blocks.*.{branch}" for outer in _ATTENTIONS for branch in _BRANCHES),
        ),
    },
    example=_example,
    forward=_forward,
    latent_shape=square,
    constant_inputs=("time_ids",),
)
"""``UNet2DConditionModel``, with SDXL's text embedding and time ids if the config has them."""

PLAIN = Preset(
    granularities={"stage": _STAGES, "layer": (*_RESNETS, *_ATTENTIONS, *_SAMPLERS)},
    example=_plain_example,
    forward=first_output,
    latent_shape=square,
)
"""``UNet2DModel``. Its attentions are single layers, so there is no ``branch`` granularity."""

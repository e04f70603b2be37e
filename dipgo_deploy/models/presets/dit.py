"""Transformers with one stream: DiT (class labels), PixArt and Wan (text in cross-attention)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.presets.inputs import Input, Shape, latent_channels
from dipgo_deploy.models.presets.preset import Network, Preset, any_side, extra_inputs, first_output, square

__all__ = ["DIT", "PIXART", "WAN"]


_FRAMES, _HEIGHT, _WIDTH = 21, 60, 104
"""Latent size of 81 frames of 480 by 832 pixels. A Wan config has no size."""

_LARGE = 128
"""``sample_size`` of PixArt-alpha's model of 1024 pixels."""

_ONE_TABLE = "its table of positions is made for one size"
"""Why the latent of DiT and PixArt has one size."""

_IMAGE_TOKENS = 257
"""Tokens of the CLIP image encoder of Wan's image-to-video pipeline, if the folder does not say them."""


def _dit_inputs(network: Network) -> dict[str, Input]:
    count = int(network.config["num_embeds_ada_norm"])
    return {"class_labels": Input((), classes=count, null=count), **extra_inputs(network)}


def _pixart_inputs(network: Network) -> dict[str, Input]:
    inputs = {
        "encoder_hidden_states": Input((network.tokens, int(network.config["caption_channels"]))),
        "encoder_attention_mask": Input.constant(np.ones(network.tokens)),
    }
    if _has_sizes(network.config):
        height, width = 8.0 * network.latent[1], 8.0 * network.latent[2]
        inputs["resolution"] = Input.constant([height, width])
        inputs["aspect_ratio"] = Input.constant([height / width])
    return inputs | extra_inputs(network)


def _has_sizes(config: Mapping[str, Any]) -> bool:
    """Whether the embedding has resolution and aspect ratio as inputs. By default a model of 1024 pixels has them."""
    asked = config.get("use_additional_conditions")
    return config["sample_size"] == _LARGE if asked is None else bool(asked)


def _pixart_forward(module: nn.Module, **inputs: Any) -> torch.Tensor:
    added = {name: inputs.pop(name, None) for name in ("resolution", "aspect_ratio")}
    return first_output(module, **inputs, added_cond_kwargs=added)


def _wan_inputs(network: Network) -> dict[str, Input]:
    config = network.config
    inputs = {"encoder_hidden_states": Input((network.tokens, int(config["text_dim"])))}
    if config.get("image_dim") is not None:
        if config.get("pos_embed_seq_len") is not None:
            raise InputError(
                "this WanTransformer3DModel takes two images a row, first and last frame, which no input holds: use a "
                "model of one image"
            )
        tokens = network.call.image_tokens or _IMAGE_TOKENS
        inputs["encoder_hidden_states_image"] = Input((tokens, int(config["image_dim"])))
    return inputs | extra_inputs(network)


def _wan_shape(config: Mapping[str, Any]) -> Shape:
    return latent_channels(config), _FRAMES, _HEIGHT, _WIDTH


DIT = Preset(
    granularities={
        "stage": ("transformer_blocks.*",),
        "branch": ("transformer_blocks.*.attn1", "transformer_blocks.*.ff"),
    },
    example=None,
    forward=first_output,
    latent_shape=square,
    inputs=_dit_inputs,
    sides=lambda _: _ONE_TABLE,
)
"""``DiTTransformer2DModel``."""

PIXART = Preset(
    granularities={
        "stage": ("transformer_blocks.*",),
        "branch": tuple(f"transformer_blocks.*.{branch}" for branch in ("attn1", "attn2", "ff")),
    },
    example=None,
    forward=_pixart_forward,
    latent_shape=square,
    tokens=120,
    inputs=_pixart_inputs,
    sides=lambda _: _ONE_TABLE,
)
"""``PixArtTransformer2DModel``. PixArt-Sigma's pipelines give 300 tokens."""

WAN = Preset(
    granularities={
        "stage": ("blocks.*",),
        "branch": tuple(f"blocks.*.{branch}" for branch in ("attn1", "attn2", "ffn")),
    },
    example=None,
    forward=first_output,
    latent_shape=_wan_shape,
    tokens=512,
    inputs=_wan_inputs,
    sides=lambda config: any_side(max(config["patch_size"][1:])),
)
"""``WanTransformer3DModel``, text and image to video."""

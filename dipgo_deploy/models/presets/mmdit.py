"""Transformers with two streams, image and text: Stable Diffusion 3 and 3.5, FLUX.1.

A block returns both streams, so its feature is two tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.models.presets.inputs import REFERENCE, Input, Shape, joined, latent_channels
from dipgo_deploy.models.presets.preset import Network, Preset, any_side, extra_inputs, first_output, square

__all__ = ["FLUX", "SD3", "pack", "positions", "unpack"]

_PATCH = 2
"""Side of the square of latent pixels that FLUX packs into one token."""

_FLUX_SIDE = 128
"""Latent side of an image of 1024 pixels. A FLUX config has no size."""

_FLUX_GUIDANCE = 3.5
"""Default guidance weight of the FLUX.1-dev pipeline."""


def _text_inputs(network: Network) -> dict[str, Input]:
    config = network.config
    return {
        "encoder_hidden_states": Input((network.tokens, int(config["joint_attention_dim"]))),
        "pooled_projections": Input((int(config["pooled_projection_dim"]),)),
    }


def _sd3_inputs(network: Network) -> dict[str, Input]:
    return _text_inputs(network) | extra_inputs(network)


def _flux_shape(config: Mapping[str, Any]) -> Shape:
    return latent_channels(config) // _PATCH**2, _FLUX_SIDE, _FLUX_SIDE


def _flux_inputs(network: Network) -> dict[str, Input]:
    inputs = _text_inputs(network)
    if network.config["guidance_embeds"]:
        weight = float(network.call.default("guidance_scale", _FLUX_GUIDANCE))
        inputs["guidance"] = Input.constant(np.float32(weight))
    if network.call.reference:
        inputs[REFERENCE] = Input(network.latent)
    return inputs | extra_inputs(network, _PATCH)


def pack(latent: torch.Tensor) -> torch.Tensor:
    """A latent (rows, C, H, W) as FLUX's tokens (rows, H/2 · W/2, 4C), each token a square of 2 by 2 pixels."""
    rows, channels, height, width = latent.shape
    tall, wide = height // _PATCH, width // _PATCH
    parts = latent.reshape(rows, channels, tall, _PATCH, wide, _PATCH)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(rows, tall * wide, channels * _PATCH**2)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """FLUX's tokens (rows, H/2 · W/2, 4C) as a latent (rows, C, H, W). Inverse of ``pack``."""
    rows, _, size = tokens.shape
    tall, wide, channels = height // _PATCH, width // _PATCH, size // _PATCH**2
    parts = tokens.reshape(rows, tall, wide, channels, _PATCH, _PATCH)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, height, width)


def positions(height: int, width: int, index: int = 0) -> torch.Tensor:
    """FLUX's position ids of an image.

    Args:
        height: of the latent, in latent pixels.
        width: of the latent.
        index: 0 for the latent, 1 for a reference image.

    Returns:
        Ids (H/2 · W/2, 3): index, row and column of every token.
    """
    rows, columns = torch.arange(height // _PATCH).float(), torch.arange(width // _PATCH).float()
    return torch.cartesian_prod(torch.full((1,), float(index)), rows, columns)


def _flux_forward(
    module: nn.Module,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    **inputs: Any,
) -> torch.Tensor:
    """The network on an unpacked latent (rows, C, H, W). FLUX counts time from 0 to 1."""
    height, width = hidden_states.shape[2:]
    reference = inputs.pop(REFERENCE, None)
    packed, ids = pack(joined(hidden_states, inputs)), positions(height, width)
    own = packed.shape[1]
    if reference is not None:
        packed = torch.cat([packed, pack(reference)], dim=1)
        ids = torch.cat([ids, positions(reference.shape[2], reference.shape[3], 1)])
    output = module(
        hidden_states=packed,
        timestep=timestep / 1000,
        encoder_hidden_states=encoder_hidden_states,
        img_ids=ids.to(packed.device),
        txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3, device=packed.device),
        return_dict=False,
        **inputs,
    )[0]
    return unpack(output if reference is None else output[:, :own], height, width)


def _sd3_sides(config: Mapping[str, Any]) -> SizeRange:
    """Sides within the table of positions, whose middle is cut out.

    The exporter rounds the middle of an odd number of patches down where PyTorch rounds it up, so sides are even.
    """
    patch = int(config["patch_size"])
    return any_side(2 * patch, patch * int(config["pos_embed_max_size"]))


SD3 = Preset(
    granularities={
        "stage": ("transformer_blocks.*",),
        "branch": tuple(f"transformer_blocks.*.{branch}" for branch in ("attn", "attn2", "ff", "ff_context")),
    },
    example=None,
    forward=first_output,
    latent_shape=square,
    tokens=333,
    inputs=_sd3_inputs,
    sides=_sd3_sides,
)
"""``SD3Transformer2DModel``. Text has 77 tokens of the two CLIP encoders and 256 of T5."""

FLUX = Preset(
    granularities={
        "stage": ("transformer_blocks.*", "single_transformer_blocks.*"),
        "branch": (
            *(f"transformer_blocks.*.{branch}" for branch in ("attn", "ff", "ff_context")),
            *(f"single_transformer_blocks.*.{branch}" for branch in ("attn", "proj_mlp", "proj_out")),
        ),
    },
    example=None,
    forward=_flux_forward,
    latent_shape=_flux_shape,
    tokens=512,
    inputs=_flux_inputs,
    sides=lambda _: "its packed tokens do not tell height from width",
)
"""``FluxTransformer2DModel``, on latents as the VAE gives them. Packing into tokens is part of the graph."""

"""U-Nets: text-conditioned (Stable Diffusion 1, 2, XL, IF, Kandinsky) and plain (DDPM, latent diffusion)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.models.presets.inputs import Input
from dipgo_deploy.models.presets.preset import Network, Preset, any_side, extra_inputs, first_output, square

__all__ = ["CONDITIONED", "PLAIN", "guidance_embedding"]

_STAGES = ("down_blocks.*", "mid_block", "up_blocks.*")
_SAMPLERS = ("down_blocks.*.downsamplers.*", "up_blocks.*.upsamplers.*")
_RESNETS = ("down_blocks.*.resnets.*", "mid_block.resnets.*", "up_blocks.*.resnets.*")
_ATTENTIONS = ("down_blocks.*.attentions.*", "mid_block.attentions.*", "up_blocks.*.attentions.*")
_BRANCHES = ("attn1", "attn2", "ff")

_ADDED = ("text_embeds", "time_ids", "image_embeds", "hint")
"""Inputs that diffusers passes in ``added_cond_kwargs``."""

_PIXELS = 8
"""Pixels of one latent pixel, in sizes and hints."""

_TIME_IDS = 6
"""SDXL's original size, crop corner and target size. The refiner has an aesthetic score in place of the target size."""

_SCORES = 2.5, 6.0
"""Aesthetic scores of the rows without and with condition, the defaults of the refiner's pipeline."""

_NOISE_LEVEL = 20
"""Default noise level of the upscaling pipeline, for a denoiser without its pipeline."""

_EMBEDDED_GUIDANCE = 8.5
"""Default guidance weight of the pipeline of latent consistency models, for a denoiser without its pipeline."""


def _inputs(network: Network) -> dict[str, Input]:
    """Inputs in the order of ``UNet2DConditionModel.forward``, then extra channels."""
    config, inputs = network.config, {}
    if width := _text_width(config):
        inputs["encoder_hidden_states"] = Input((network.tokens, width))
    inputs |= _class_input(network)
    if dim := config.get("time_cond_proj_dim"):
        weight = float(network.call.default("guidance_scale", _EMBEDDED_GUIDANCE)) - 1.0
        inputs["timestep_cond"] = Input.constant(guidance_embedding(weight, int(dim)))
    return inputs | _added_inputs(network) | extra_inputs(network)


def _text_width(config: Mapping[str, Any]) -> int | None:
    """Width of the text tokens. None for a U-Net whose cross-attention has no text to look at."""
    kind, width = config.get("encoder_hid_dim_type"), config.get("encoder_hid_dim")
    if kind == "ip_image_proj":
        raise InputError("this UNet2DConditionModel has an IP-Adapter, whose images are no input: unload_ip_adapter()")
    if kind == "image_proj":
        return None
    if width is not None:
        return int(width)
    dims = config["cross_attention_dim"]
    if isinstance(dims, int):
        return dims
    kinds, channels = config["down_block_types"], config["block_out_channels"]
    seen = [index for index, name in enumerate(kinds) if "CrossAttn" in name]
    widths = {dims[index] for index in seen}
    if len(widths) == 1 or not seen:
        return int(dims[seen[0] if seen else -1])
    if all(dims[index] == channels[index] for index in seen):
        return None  # Text would not fit all blocks, so pipelines pass none and the blocks attend to themselves.
    raise InputError(
        f"cross_attention_dim {list(dims)} gives the blocks texts of different widths, which one text cannot fit: use "
        "a U-Net with one width"
    )


def _class_input(network: Network) -> dict[str, Input]:
    """``class_labels``: a class, a noise level, or a vector such as an image's embedding."""
    config, kind = network.config, network.config.get("class_embed_type")
    count, level = config.get("num_class_embeds"), network.call.default("noise_level")
    if kind in ("projection", "simple_projection"):
        made = Input((int(config["projection_class_embeddings_input_dim"]),))
    elif kind == "identity":
        made = Input((_time_width(config),))
    elif kind == "timestep" or (count and (level is not None or extra_inputs(network))):
        made = Input.constant(np.int64(_NOISE_LEVEL if level is None else level))
    elif kind is None and count:
        made = Input((), classes=int(count))
    else:
        return {}
    return {"class_labels": made}


def _time_width(config: Mapping[str, Any]) -> int:
    """Width of the time embedding."""
    first = int(config["block_out_channels"][0])
    factor = 2 if config.get("time_embedding_type") == "fourier" else 4
    return int(config.get("time_embedding_dim") or factor * first)


def _added_inputs(network: Network) -> dict[str, Input]:
    """Inputs that the added embedding and the projection of the encoder's states look at."""
    config, kind = network.config, network.config.get("addition_embed_type")
    inputs: dict[str, Input] = {}
    if kind == "text_time":
        count = _time_id_count(network)
        width = config["projection_class_embeddings_input_dim"] - count * config["addition_time_embed_dim"]
        inputs = {"text_embeds": Input((width,)), "time_ids": _time_ids(network.latent, count)}
    elif kind == "text_image":
        inputs["text_embeds"] = Input((config["cross_attention_dim"],))
    if kind == "text_image" or config.get("encoder_hid_dim_type") == "text_image_proj":
        inputs["image_embeds"] = Input((config["cross_attention_dim"],))
    elif kind in ("image", "image_hint") or config.get("encoder_hid_dim_type") == "image_proj":
        inputs["image_embeds"] = Input((config["encoder_hid_dim"],))
    if kind == "image_hint":
        inputs["hint"] = Input((3, *(_PIXELS * side for side in network.latent[1:])))
    return inputs


def _time_id_count(network: Network) -> int:
    """Number of time ids. The width of the embedding is that of the ids and of the pooled text."""
    config, call = network.config, network.call
    width, each = config["projection_class_embeddings_input_dim"], config["addition_time_embed_dim"]
    if call.pooled_width is not None and (width - call.pooled_width) % each == 0:
        return int((width - call.pooled_width) // each)
    # The refiner has one text encoder, whose pooled text is as wide as its tokens.
    is_refiner = call.has_aesthetic_score or width - (_TIME_IDS - 1) * each == config["cross_attention_dim"]
    return _TIME_IDS - 1 if is_refiner else _TIME_IDS


def _time_ids(shape: tuple[int, ...], count: int) -> Input:
    """SDXL's micro-conditioning in pixels."""
    size = [float(_PIXELS * shape[1]), float(_PIXELS * shape[2])]
    if count != _TIME_IDS - 1:
        return Input.constant([*size, 0.0, 0.0, *size])
    negative, positive = ([*size, 0.0, 0.0, score] for score in _SCORES)
    return Input.constant(positive, negative)


def guidance_embedding(weight: float, width: int) -> np.ndarray:
    """The embedding of a guidance weight in latent consistency models.

    Args:
        weight: the guidance scale minus 1.
        width: ``time_cond_proj_dim`` of the U-Net.

    Returns:
        Sines and cosines (width,), float32, as ``get_guidance_scale_embedding`` of diffusers' pipelines gives them.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = torch.tensor(weight * 1000.0, dtype=torch.float32) * frequencies
    return torch.cat([torch.sin(angles), torch.cos(angles), torch.zeros(width % 2)]).numpy()


def _forward(module: nn.Module, **inputs: Any) -> torch.Tensor:
    added = {name: inputs.pop(name) for name in _ADDED if name in inputs}
    if added:
        inputs["added_cond_kwargs"] = added
    inputs.setdefault("encoder_hidden_states", None)
    return first_output(module, **inputs)


def _plain_inputs(network: Network) -> dict[str, Input]:
    return _class_input(network) | extra_inputs(network)


def _sides(config: Mapping[str, Any]) -> SizeRange:
    """Sides that every stage halves evenly. At other sizes diffusers tells each upsampler which size to make."""
    return any_side(2 ** (len(config["block_out_channels"]) - 1))


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
    example=None,
    forward=_forward,
    latent_shape=square,
    inputs=_inputs,
    sides=_sides,
)
"""``UNet2DConditionModel``, with the inputs that its config asks for."""

PLAIN = Preset(
    granularities={"stage": _STAGES, "layer": (*_RESNETS, *_ATTENTIONS, *_SAMPLERS)},
    example=None,
    forward=first_output,
    latent_shape=square,
    inputs=_plain_inputs,
    sides=_sides,
)
"""``UNet2DModel``. Its attentions are single layers, so there is no ``branch`` granularity."""

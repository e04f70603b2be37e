"""A tiny model of every family that the project has a preset for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    WanTransformer3DModel,
)
from torch import nn

from dipgo_deploy.models import LoadedModel, model_from_module

__all__ = ["FAMILIES", "tiny"]

_UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
_CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 12,
}
_DIT = {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4, "sample_size": 8, "num_layers": 3}


def sd() -> nn.Module:
    return UNet2DConditionModel(**_UNET, **_CROSS, attention_head_dim=2)


def sdxl() -> nn.Module:
    return UNet2DConditionModel(
        **_UNET, **_CROSS, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=8 * 6 + 10,
    )  # fmt: skip


def ddpm() -> nn.Module:
    return UNet2DModel(
        **_UNET, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
    )


def dit() -> nn.Module:
    return DiTTransformer2DModel(**_DIT, out_channels=8)


def pixart_alpha() -> nn.Module:
    return PixArtTransformer2DModel(
        **_DIT, out_channels=8, cross_attention_dim=24, caption_channels=12, use_additional_conditions=True
    )


def pixart_sigma() -> nn.Module:
    return PixArtTransformer2DModel(
        **_DIT, out_channels=8, cross_attention_dim=24, caption_channels=12, use_additional_conditions=False
    )


def sd3() -> nn.Module:
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=8,
        qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip


def flux() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def wan() -> nn.Module:
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12, freq_dim=16,
        ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip


FAMILIES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sd": (sd, (4, 8, 8)),
    "sdxl": (sdxl, (4, 8, 8)),
    "ddpm": (ddpm, (3, 8, 8)),
    "dit": (dit, (4, 8, 8)),
    "pixart-alpha": (pixart_alpha, (4, 8, 8)),
    "pixart-sigma": (pixart_sigma, (4, 8, 8)),
    "sd3": (sd3, (4, 8, 8)),
    "flux": (flux, (4, 8, 8)),
    "wan": (wan, (4, 2, 8, 8)),
}
"""Module and latent shape of one image, by name."""


def tiny(name: str) -> LoadedModel:
    """The tiny model of a family, its weights random but the same every time."""
    torch.manual_seed(0)
    build, shape = FAMILIES[name]
    is_flow = name in ("sd3", "flux", "wan")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler" if is_flow else "DDIMScheduler", "clip_sample": False}
    return model_from_module(build(), latent_shape=shape, text_tokens=7, scheduler_config=scheduler)

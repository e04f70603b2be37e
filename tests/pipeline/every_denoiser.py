"""Configs of tiny denoisers for every pipeline class: the family's, changed where a class's checkpoints differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from tests.pipeline.every_rare_part import WIDTH

__all__ = ["config_for", "tiny_denoiser"]

_UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
_DIT = {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4, "sample_size": 8, "num_layers": 2}

_BASE: Mapping[str, dict[str, Any]] = {
    "UNet2DConditionModel": {
        **_UNET, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": WIDTH,
    },
    "UNet2DModel": {
        **_UNET, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "DiTTransformer2DModel": {**_DIT, "out_channels": 8},
    "PixArtTransformer2DModel": {
        **_DIT, "out_channels": 8, "cross_attention_dim": 24, "caption_channels": WIDTH,
        "use_additional_conditions": False,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 16,
        "pooled_projection_dim": 10, "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": (0,),
    },
    "FluxTransformer2DModel": {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": WIDTH, "pooled_projection_dim": 10, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
    },
    "WanTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": WIDTH,
        "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 1024,
    },
}  # fmt: skip

_SDXL = {
    "attention_head_dim": (2, 4), "transformer_layers_per_block": (1, 2), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 58,
}  # fmt: skip
_AUDIO = {
    "cross_attention_dim": (8, 16), "class_embed_type": "simple_projection", "class_embeddings_concat": True,
    "projection_class_embeddings_input_dim": WIDTH,
}  # fmt: skip
_SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip
_KANDINSKY = {
    **_SIMPLE, "out_channels": 8, "encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "text_image_proj",
    "addition_embed_type": "text_image", "attention_head_dim": 4,
}  # fmt: skip
_KANDINSKY22 = _KANDINSKY | {"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
_IF = {
    **_SIMPLE, "in_channels": 3, "out_channels": 6, "encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text", "addition_embed_type_num_heads": 2, "attention_head_dim": 4, "act_fn": "gelu",
}  # fmt: skip

_CHANGES: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (r"XL", _SDXL),
    (r"\(refiner\)", {"projection_class_embeddings_input_dim": 50}),
    (r"InstructPix2Pix", {"in_channels": 8}),
    (r"^(StableDiffusion|StableDiffusionXL)(PAG)?InpaintPipeline$", {"in_channels": 9}),
    (r"PaintByExample", {"in_channels": 9}),
    (r"Depth2Img", {"in_channels": 5}),
    (r"StableDiffusionUpscale", {"in_channels": 7, "num_class_embeds": 1000}),
    (
        r"LatentUpscale",
        {
            "in_channels": 8, "out_channels": 5, "time_cond_proj_dim": 896, "sample_size": 32,
            "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D"), "mid_block_type": None,
            "up_block_types": ("KCrossAttnUpBlock2D", "KUpBlock2D"), "only_cross_attention": False,
            "time_embedding_type": "fourier", "timestep_post_act": "gelu", "act_fn": "gelu", "norm_num_groups": None,
            "conv_in_kernel": 1, "conv_out_kernel": 1, "resnet_time_scale_shift": "scale_shift",
            "block_out_channels": (32, 32), "attention_head_dim": 8, "cross_attention_norm": "layer_norm",
        },
    ),
    (r"StableUnCLIP", {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * WIDTH}),
    (r"AudioLDM|MusicLDM", _AUDIO),
    (r"^Kandinsky(?!V22)", _KANDINSKY),
    (r"^KandinskyV22", _KANDINSKY22),
    (r"^KandinskyV22Controlnet", {"addition_embed_type": "image_hint", "in_channels": 8}),
    (r"^Kandinsky.*Inpaint", {"in_channels": 9}),
    (r"^IF", _IF),
    (r"^IF.*SuperResolution", {"in_channels": 6, "class_embed_type": "timestep"}),
    (r"^LatentConsistency", {"time_cond_proj_dim": 32}),
    (r"^Marigold", {"in_channels": 8}),
    (r"^MarigoldIntrinsics", {"in_channels": 12, "out_channels": 8}),
    (r"GLIGENPipeline", {"attention_type": "gated"}),
    (r"GLIGENTextImage", {"attention_type": "gated-text-image"}),
    (r"^LDMPipeline", {"in_channels": 4, "out_channels": 4}),
    (r"^LDMSuperResolution", {"in_channels": 6, "out_channels": 3}),
    (r"^PixArt", {"sample_size": 32}),
    (r"^PixArtAlphaPipeline .1024.$", {"use_additional_conditions": True, "sample_size": 128}),
    (r"^StableDiffusion3.*Inpaint", {"in_channels": 16, "out_channels": 16}),
    (r"^FluxControl(Img2Img|Inpaint)?Pipeline", {"in_channels": 32, "out_channels": 16}),
    (r"^FluxFill|^VisualCloze", {"in_channels": 48, "out_channels": 16}),
    (r"schnell", {"guidance_embeds": False}),
    (r"^WanImageToVideo", {"in_channels": 12, "image_dim": WIDTH}),
    (r"^LucyEdit", {"in_channels": 8}),
)  # fmt: skip
"""What the checkpoints of some classes have otherwise than their family, by a pattern of the row's name."""


def config_for(kind: str, row: str) -> dict[str, Any]:
    """The config of the tiny denoiser ``kind`` of a row of the table."""
    config = dict(_BASE[kind])
    for pattern, changes in _CHANGES:
        if re.search(pattern, row):
            config |= changes
    return config


def tiny_denoiser(kind: str, row: str, seed: int = 0) -> Any:
    """A tiny denoiser. Equal configs give equal weights, so that their trace is shared."""
    torch.manual_seed(seed)
    return getattr(diffusers, kind)(**config_for(kind, row))

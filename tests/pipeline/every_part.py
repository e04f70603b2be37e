"""Tiny parts of pipelines by the class that a constructor's annotation names. Random weights, no download.

Widths fit each other: text has 12 features, images have 12, pooled text has 10 where SDXL, SD3 or FLUX need it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.models.pipelines import TEXT, save_tokenizer
from tests.pipeline.every_rare_part import PIECES, RARE, WIDTH, scored, vision_config

__all__ = ["PARTS", "part"]


def part(kind: str, name: str, cls: type) -> Any:
    """A tiny part of a pipeline.

    Args:
        kind: the class that the annotation names.
        name: of the constructor's parameter.
        cls: the pipeline's class.

    Returns:
        The part.
    """
    torch.manual_seed(0)
    return PARTS[kind](name, cls.__name__)


def _clip_text(name: str, pipeline: str) -> Any:
    return transformers.CLIPTextModel(_text_config(_text_width(name, pipeline)))


def _clip_text_projected(name: str, pipeline: str) -> Any:
    if name == "text_encoder_2" and "XL" in pipeline:
        return transformers.CLIPTextModelWithProjection(_text_config(8, projection_dim=10))
    if "Diffusion3" in pipeline:
        return transformers.CLIPTextModelWithProjection(_text_config(6, projection_dim=5))
    return transformers.CLIPTextModelWithProjection(_text_config(WIDTH, projection_dim=WIDTH))


def _text_width(name: str, pipeline: str) -> int:
    if "XL" in pipeline:
        return 4
    return 10 if "Flux" in pipeline or "VisualCloze" in pipeline else WIDTH


def _text_config(width: int, **more: Any) -> Any:
    return transformers.CLIPTextConfig(**{**TEXT, "hidden_size": width, **more}, max_position_embeddings=77)


def _safety_checker(name: str, pipeline: str) -> Any:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    text = _text_config(WIDTH, projection_dim=WIDTH).to_dict()
    config = transformers.CLIPConfig(text_config=text, vision_config=vision_config().to_dict(), projection_dim=WIDTH)
    return StableDiffusionSafetyChecker(config)


def _clip_tokenizer(name: str, pipeline: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _t5(name: str, pipeline: str) -> Any:
    config = transformers.T5Config(vocab_size=40, d_model=WIDTH, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def _umt5(name: str, pipeline: str) -> Any:
    config = transformers.UMT5Config(vocab_size=40, d_model=WIDTH, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    return transformers.UMT5EncoderModel(config)


def _t5_tokenizer(name: str, pipeline: str) -> Any:
    pieces = ["<pad>", *(piece for piece in PIECES[2:-1])]
    return transformers.T5TokenizerFast(vocab=scored(pieces), extra_ids=0)


def _vision(name: str, pipeline: str) -> Any:
    return transformers.CLIPVisionModel(vision_config())


def _vision_projected(name: str, pipeline: str) -> Any:
    return transformers.CLIPVisionModelWithProjection(vision_config())


def _images(name: str, pipeline: str) -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def _vae(name: str, pipeline: str) -> Any:
    """A VAE that halves the side of an image, and one of three halvings for sizes that a class fixes."""
    blocks = 4 if "PixArt" in pipeline or "Panorama" in pipeline else 2
    colours = 6 if "LDM3D" in pipeline else 1 if pipeline[:5] in ("Audio", "Music") else 3
    vae = diffusers.AutoencoderKL(
        in_channels=colours, out_channels=colours, latent_channels=16 if "Diffusion3Inpaint" in pipeline else 4,
        block_out_channels=(8,) * blocks, down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks, norm_num_groups=4,
    )  # fmt: skip
    if any(family in pipeline for family in ("Flux", "Diffusion3", "VisualCloze")):
        vae.register_to_config(shift_factor=0.1)
    return vae


def _wan_vae(name: str, pipeline: str) -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip


def _vq(name: str, pipeline: str) -> Any:
    channels = 3 if pipeline.startswith("LDMSuper") else 4
    return diffusers.VQModel(
        latent_channels=channels, vq_embed_dim=channels, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=12,
    )  # fmt: skip


def _scheduler(kind: str, **options: Any) -> Callable[[str, str], Any]:
    return lambda name, pipeline: getattr(diffusers, kind)(**options)


_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _karras(name: str, pipeline: str) -> Any:
    """The scheduler of the family's published pipelines."""
    if name in ("image_noising_scheduler", "prior_scheduler"):
        return diffusers.DDPMScheduler() if name.startswith("image") else diffusers.UnCLIPScheduler()
    if "XL" in pipeline:
        return diffusers.EulerDiscreteScheduler(**_SD_BETAS, steps_offset=1)
    if "PixArt" in pipeline:
        return diffusers.DPMSolverMultistepScheduler()
    if pipeline.startswith("DiT"):
        return diffusers.DDIMScheduler(clip_sample=False)
    if pipeline.startswith("Stable") and "UnCLIP" not in pipeline:
        return diffusers.PNDMScheduler(**_SD_BETAS, skip_prk_steps=True, steps_offset=1)
    return diffusers.DDIMScheduler(**_SD_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _ddim(name: str, pipeline: str) -> Any:
    is_plain = pipeline.startswith(("DDIM", "LDMPipeline", "LDMSuper"))
    options = {} if is_plain else {**_SD_BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return diffusers.DDIMScheduler(**options)


def _motion(name: str, pipeline: str) -> Any:
    return diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )


PARTS: Mapping[str, Callable[[str, str], Any]] = {
    **RARE,
    "CLIPTextModel": _clip_text,
    "CLIPTextModelWithProjection": _clip_text_projected,
    "StableDiffusionSafetyChecker": _safety_checker,
    "CLIPTokenizer": _clip_tokenizer,
    "PythonBackend": _clip_tokenizer,
    "T5EncoderModel": _t5,
    "T5Tokenizer": _t5_tokenizer,
    "AutoTokenizer": _t5_tokenizer,
    "UMT5EncoderModel": _umt5,
    "CLIPVisionModel": _vision,
    "CLIPVisionModelWithProjection": _vision_projected,
    "CLIPImageProcessorPil": _images,
    "AutoencoderKL": _vae,
    "AutoencoderKLWan": _wan_vae,
    "VQModel": _vq,
    "KarrasDiffusionSchedulers": _karras,
    "SchedulerMixin": _karras,
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _scheduler("DDPMScheduler"),
    "PNDMScheduler": _scheduler("PNDMScheduler"),
    "LCMScheduler": _scheduler("LCMScheduler"),
    "UnCLIPScheduler": _scheduler("UnCLIPScheduler"),
    "EulerDiscreteScheduler": _scheduler("EulerDiscreteScheduler"),
    "DPMSolverMultistepScheduler": _scheduler("DPMSolverMultistepScheduler"),
    "FlowMatchEulerDiscreteScheduler": _scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
    "CMStochasticIterativeScheduler": _scheduler("CMStochasticIterativeScheduler"),
    "KarrasVeScheduler": _scheduler("KarrasVeScheduler"),
    "ScoreSdeVeScheduler": _scheduler("ScoreSdeVeScheduler"),
    "RePaintScheduler": _scheduler("RePaintScheduler"),
    "DDIMInverseScheduler": _scheduler("DDIMInverseScheduler"),
    "MotionAdapter": _motion,
}

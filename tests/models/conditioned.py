"""Tiny pipelines whose denoisers look at more than latent, time and text: images, masks, guidance weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from tests.models.families import _CROSS, _UNET
from tests.models.pipelines import TEXT, save_tokenizer, tiny_vae

TOKENS = 7

SIDE = 16
"""Side of an image in pixels. The VAE halves it."""


def unet(**more: Any) -> Any:
    return diffusers.UNet2DConditionModel(**{**_UNET, **_CROSS, "attention_head_dim": 2, **more})


def flux(**more: Any) -> Any:
    return diffusers.FluxTransformer2DModel(
        **{
            **{"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16},
            **{"num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 10},
            **{"guidance_embeds": True, "axes_dims_rope": (4, 6, 6), **more},
        }
    )


def _text(width: int = 12) -> Any:
    config = transformers.CLIPTextConfig(**{**TEXT, "hidden_size": width}, max_position_embeddings=77)
    return transformers.CLIPTextModel(config)


def _tokenizer(folder: Path) -> Any:
    save_tokenizer(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def _ddim(**more: Any) -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, **more)


def _sd(kind: str, own: Any, folder: Path, scheduler: Any = None, **parts: Any) -> Any:
    return getattr(diffusers, kind)(
        vae=tiny_vae(4), text_encoder=_text(), tokenizer=_tokenizer(folder), unet=own,
        scheduler=scheduler or _ddim(), **parts,
    )  # fmt: skip


_NO_CHECK = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _inpaint(folder: Path) -> Any:
    return _sd("StableDiffusionInpaintPipeline", unet(in_channels=9), folder, **_NO_CHECK)


def _depth(folder: Path) -> Any:
    return _sd(
        "StableDiffusionDepth2ImgPipeline", unet(in_channels=5), folder, depth_estimator=None, feature_extractor=None
    )


def _upscale(folder: Path) -> Any:
    own = unet(in_channels=7, num_class_embeds=1000)
    return _sd("StableDiffusionUpscalePipeline", own, folder, low_res_scheduler=diffusers.DDPMScheduler())


def _pix2pix(folder: Path) -> Any:
    return _sd("StableDiffusionInstructPix2PixPipeline", unet(in_channels=8), folder, **_NO_CHECK)


def _lcm(folder: Path) -> Any:
    own, scheduler = unet(time_cond_proj_dim=6), diffusers.LCMScheduler()
    return _sd("LatentConsistencyModelPipeline", own, folder, scheduler, **_NO_CHECK)


def _marigold(folder: Path) -> Any:
    return _sd(
        "MarigoldDepthPipeline", unet(in_channels=8), folder, default_denoising_steps=3, default_processing_resolution=0
    )


def _super_resolution(folder: Path) -> Any:
    own = diffusers.UNet2DModel(
        **_UNET, in_channels=6, out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    quantized = diffusers.VQModel(latent_channels=3, block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=4)
    return diffusers.LDMSuperResolutionPipeline(quantized, own, diffusers.DDIMScheduler(clip_sample=False))


def _refiner(folder: Path) -> Any:
    config = transformers.CLIPTextConfig(**{**TEXT, "hidden_size": 12}, projection_dim=10, max_position_embeddings=77)
    own = unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=5 * 8 + 10
    )
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=tiny_vae(4), text_encoder=None, tokenizer=None, unet=own, scheduler=diffusers.EulerDiscreteScheduler(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(config), tokenizer_2=_tokenizer(folder),
        requires_aesthetics_score=True, add_watermarker=False,
    )  # fmt: skip


def _if_super_resolution(folder: Path) -> Any:
    own = unet(
        in_channels=6, out_channels=6, encoder_hid_dim=12, cross_attention_dim=10, class_embed_type="timestep",
        addition_embed_type="text", addition_embed_type_num_heads=2,
    )  # fmt: skip
    noise = diffusers.DDPMScheduler(variance_type="learned_range")
    return diffusers.IFSuperResolutionPipeline(
        None, None, own, noise, diffusers.DDPMScheduler(), None, None, None, False
    )


def _kandinsky(folder: Path) -> Any:
    own = unet(out_channels=8, encoder_hid_dim=6, encoder_hid_dim_type="image_proj", addition_embed_type="image")
    quantized = diffusers.VQModel(latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, num_vq_embeddings=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    return diffusers.KandinskyV22Pipeline(own, diffusers.DDPMScheduler(variance_type="learned_range"), quantized)


def _flux(kind: str, **config: Any) -> Callable[[Path], Any]:
    def made(folder: Path) -> Any:
        vae = tiny_vae(4)
        vae.register_to_config(shift_factor=0.1)
        parts = dict.fromkeys((f"{part}{end}" for part in ("text_encoder", "tokenizer") for end in ("", "_2")), None)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        return getattr(diffusers, kind)(scheduler, vae, transformer=flux(**config), **parts)

    return made


def _wan_image(folder: Path) -> Any:
    own = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=12, freq_dim=16,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.WanImageToVideoPipeline(None, None, vae, scheduler, transformer=own)


def _embeds(**shapes: tuple[int, ...]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def image(side: int = SIDE) -> torch.Tensor:
    """An image in [0, 1]."""
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(4))


def _mask() -> torch.Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 4:] = 1.0
    return mask


_PROMPT = {"prompt": "a cat"}
_SIZE = {"height": SIDE, "width": SIDE}


def _flux_embeds() -> dict[str, Any]:
    return _embeds(prompt_embeds=(1, TOKENS, 12), pooled_prompt_embeds=(1, 10))


@dataclass(frozen=True)
class Conditioned:
    """A tiny pipeline, its call, and the inputs that its denoiser must get beside latent and time."""

    build: Callable[[Path], Any]
    arguments: Callable[[], dict[str, Any]]
    inputs: Mapping[str, tuple[int, ...]]
    latent: tuple[int, ...] = (4, 8, 8)


_TEXT = {"encoder_hidden_states": (TOKENS, 12)}
_FLUX = {**_TEXT, "pooled_projections": (10,), "guidance": ()}

CONDITIONED: Mapping[str, Conditioned] = {
    "inpaint": Conditioned(
        _inpaint, lambda: {**_PROMPT, **_SIZE, "image": image(), "mask_image": _mask()},
        {**_TEXT, "extra_channels": (5, 8, 8)},
    ),
    "depth": Conditioned(
        _depth, lambda: {**_PROMPT, "image": image() * 2 - 1, "depth_map": image()[:, 0]},
        {**_TEXT, "extra_channels": (1, 8, 8)},
    ),
    "upscale": Conditioned(
        _upscale, lambda: {**_PROMPT, "image": image(8)},
        {**_TEXT, "class_labels": (), "extra_channels": (3, 8, 8)},
    ),
    "lcm": Conditioned(_lcm, lambda: {**_PROMPT, **_SIZE}, {**_TEXT, "timestep_cond": (6,)}),
    "marigold": Conditioned(
        _marigold, lambda: {"image": image()}, {"encoder_hidden_states": (2, 12), "leading_channels": (4, 8, 8)}
    ),
    "super-resolution": Conditioned(
        _super_resolution, lambda: {"image": image(8)}, {"extra_channels": (3, 8, 8)}, (3, 8, 8)
    ),
    "refiner": Conditioned(
        _refiner, lambda: {**_PROMPT, "image": image(), "strength": 1.0},
        {**_TEXT, "text_embeds": (10,), "time_ids": (5,)}
    ),
    "if-super-resolution": Conditioned(
        _if_super_resolution,
        lambda: {
            **_embeds(prompt_embeds=(1, TOKENS, 12), negative_prompt_embeds=(1, TOKENS, 12)),
            "image": image(4) * 2 - 1, "height": 8, "width": 8,
        },
        {**_TEXT, "class_labels": (), "extra_channels": (3, 8, 8)}, (3, 8, 8),
    ),
    "kandinsky": Conditioned(
        _kandinsky, lambda: {**_embeds(image_embeds=(1, 6), negative_image_embeds=(1, 6)), **_SIZE},
        {"image_embeds": (6,)}
    ),
    "wan-image": Conditioned(
        _wan_image,
        lambda: {
            **_embeds(prompt_embeds=(1, TOKENS, 12), negative_prompt_embeds=(1, TOKENS, 12)),
            **_SIZE, "image": image(), "num_frames": 5, "output_type": "latent",
        },
        {**_TEXT, "extra_channels": (8, 2, 2, 2)}, (4, 2, 2, 2),
    ),
    "flux-fill": Conditioned(
        _flux("FluxFillPipeline", in_channels=48, out_channels=16),
        lambda: {**_flux_embeds(), **_SIZE, "image": image(), "mask_image": _mask()},
        {**_FLUX, "extra_channels": (8, 8, 8)},
    ),
    "flux-control": Conditioned(
        _flux("FluxControlPipeline", in_channels=32, out_channels=16),
        lambda: {**_flux_embeds(), **_SIZE, "control_image": image()}, {**_FLUX, "extra_channels": (4, 8, 8)},
    ),
    "flux-kontext": Conditioned(
        _flux("FluxKontextPipeline"),
        lambda: {**_flux_embeds(), **_SIZE, "image": image(), "max_area": SIDE**2, "_auto_resize": False},
        {**_FLUX, "reference": (4, 8, 8)},
    ),
}  # fmt: skip
"""Pipelines by name. InstructPix2Pix, which makes three rows an image, is made by ``pix2pix``."""


def pix2pix(folder: Path) -> tuple[Any, dict[str, Any]]:
    """An InstructPix2Pix pipeline and its call."""
    return _pix2pix(folder), {**_PROMPT, "image": image()}


def build(name: str, folder: Path) -> Any:
    """A tiny pipeline of random weights, which are the same every time."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = CONDITIONED[name].build(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

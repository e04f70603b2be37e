"""Tiny pipelines of every family with random weights, made without a download, and their bundles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from dipgo_deploy.bundle import ExportOptions, export
from dipgo_deploy.core.blocks import Kind
from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.program import Layout
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import load_model, make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from tests.models.families import tiny
from tests.models.pipelines import TEXT, save_tokenizer, tiny_vae

TOKENS = 7
"""Length of every text. The tiny models are traced with it."""

SIDE = 16
"""Side of an image in pixels. The VAE halves it."""


def _tokenizer(folder: Path) -> Any:
    save_tokenizer(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def _text_config(width: int, **more: Any) -> Any:
    return transformers.CLIPTextConfig(**{**TEXT, "hidden_size": width, **more}, max_position_embeddings=77)


def _sd(folder: Path, unet: Any) -> Any:
    text = transformers.CLIPTextModel(_text_config(12))
    return diffusers.StableDiffusionPipeline(
        vae=tiny_vae(4), text_encoder=text, tokenizer=_tokenizer(folder), unet=unet, safety_checker=None,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1), feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(folder: Path, unet: Any) -> Any:
    first = transformers.CLIPTextModel(_text_config(4))
    second = transformers.CLIPTextModelWithProjection(_text_config(8, projection_dim=10))
    tokenizer = _tokenizer(folder)
    return diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(4), text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer,
        unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def _ddpm(folder: Path, unet: Any) -> Any:
    return diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(clip_sample=False))


def _dit(folder: Path, transformer: Any) -> Any:
    return diffusers.DiTPipeline(transformer, tiny_vae(4), diffusers.DDIMScheduler(clip_sample=False))


def _t5(folder: Path) -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    return transformers.T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)


def _pixart(folder: Path, transformer: Any) -> Any:
    config = transformers.T5Config(vocab_size=40, d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    return diffusers.PixArtSigmaPipeline(
        _t5(folder), transformers.T5EncoderModel(config), tiny_vae(4), transformer,
        diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def _shifted_vae() -> Any:
    vae = tiny_vae(4)
    vae.register_to_config(shift_factor=0.1)
    return vae


def _sd3(folder: Path, transformer: Any) -> Any:
    parts = dict.fromkeys((f"{part}{end}" for part in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")), None)
    return diffusers.StableDiffusion3Pipeline(
        transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), _shifted_vae(), **parts
    )


def _flux(folder: Path, transformer: Any) -> Any:
    parts = dict.fromkeys((f"{part}{end}" for part in ("text_encoder", "tokenizer") for end in ("", "_2")), None)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.FluxPipeline(scheduler, _shifted_vae(), transformer=transformer, **parts)


def _wan(folder: Path, transformer: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.WanPipeline(None, None, None, scheduler, transformer=transformer)


def _embeds(tokens: int, *names: str) -> dict[str, Any]:
    """Embeddings of one prompt: 10 numbers if pooled, otherwise 12 for each token."""
    generator = torch.Generator().manual_seed(3)
    shapes = {name: (1, 10) if "pooled" in name else (1, tokens, 12) for name in names}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


_BOTH = ("prompt_embeds", "negative_prompt_embeds")
_POOLED = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def _text(tokens: int, *names: str) -> dict[str, Any]:
    """A prompt at the tokenizer's length, embeddings at other lengths."""
    return {"prompt": "a cat"} if tokens == TOKENS else _embeds(tokens, *names)


@dataclass(frozen=True)
class Family:
    """How to build and call a tiny pipeline around a tiny denoiser."""

    build: Callable[[Path, Any], Any]
    denoiser: str
    sampler: str
    guidance: Guidance
    arguments: Callable[..., dict[str, Any]]
    calls_per_step: int = 1


_SIZE = {"height": SIDE, "width": SIDE}

FAMILIES: Mapping[str, Family] = {
    "sd": Family(
        _sd, "sd", "pndm", "concat", lambda tokens=TOKENS: {**_text(tokens, *_BOTH), "guidance_scale": 4.0, **_SIZE},
    ),
    "sdxl": Family(
        _sdxl, "sdxl", "euler", "concat",
        lambda tokens=TOKENS: {**_text(tokens, *_BOTH, *_POOLED), "guidance_scale": 4.0, **_SIZE},
    ),
    "ddpm": Family(_ddpm, "ddpm", "ddim", "none", lambda: {"batch_size": 2}),
    "dit": Family(_dit, "dit", "ddim", "concat", lambda: {"class_labels": [3, 7]}),
    "pixart": Family(
        _pixart, "pixart-sigma", "dpmpp-2m", "concat",
        lambda tokens=TOKENS: {"prompt": "a cat", "clean_caption": False, "max_sequence_length": tokens, **_SIZE,
        },
    ),
    "sd3": Family(
        _sd3, "sd3", "flow-euler", "concat", lambda tokens=TOKENS: {**_embeds(tokens, *_BOTH, *_POOLED), **_SIZE},
    ),
    "flux": Family(
        _flux, "flux", "flow-euler", "none",
        lambda tokens=TOKENS: {**_embeds(tokens, "prompt_embeds", "pooled_prompt_embeds"), **_SIZE},
    ),
    "wan": Family(
        _wan, "wan", "flow-euler", "none",
        lambda tokens=TOKENS: {
            **_embeds(tokens, *_BOTH), "height": 64, "width": 64, "num_frames": 5, "output_type": "latent",
        },
        calls_per_step=2,
    ),
}  # fmt: skip
"""Wan calls its network twice per step, with a cache context for each call."""


def build(name: str, folder: Path) -> Any:
    """The PyTorch pipeline of a family as it loads from ``folder``, where it is saved."""
    family = FAMILIES[name]
    denoiser = tiny(family.denoiser).module
    torch.manual_seed(1)
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = family.build(folder.with_name(f"{folder.name}-tokenizer"), denoiser)
    pipeline.save_pretrained(folder)
    absent = {name: None for name, part in pipeline.components.items() if part is None}
    return diffusers.DiffusionPipeline.from_pretrained(folder, **absent)


def make_bundle(
    name: str,
    pipeline: Path,
    out: Path,
    *,
    layout: Layout = "subnets",
    sampler: str | None = None,
    steps: int = 6,
    guidance: Guidance | None = None,
    granularity: str = "stage",
    kind: Kind = "output",
) -> Path:
    """The bundle of a saved pipeline under a random schedule."""
    family = FAMILIES[name]
    model = replace(load_model(pipeline), latent_shape=tiny(family.denoiser).latent_shape, text_tokens=TOKENS)
    graph = trace(model, granularity=granularity).blocks
    contract = make_contract(
        model, sampler=sampler or family.sampler, steps=steps, guidance=guidance or family.guidance
    )
    schedule = random_schedule(graph, contract, kind, np.random.default_rng(2), 0.55)
    return export(model, schedule, out, ExportOptions(layout))


def drawn(pipeline: Any, arguments: Mapping[str, Any], seed: int = 5) -> np.ndarray:
    """Images (or latents) of one call, float64."""
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(**{"output_type": "np", **arguments}, generator=torch.Generator().manual_seed(seed))
    return np.asarray(output.frames if hasattr(output, "frames") else output.images, np.float64)

"""Pipeline folders with tiny components of random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = {
    **{"vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
}


def tiny_vae(channels: int) -> Any:
    """An AutoencoderKL that doubles the side of ``channels`` latents."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )


def tiny_text_encoder() -> Any:
    """A CLIPTextModel of one layer; skips the test without transformers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, max_position_embeddings=77))


def save_tokenizer(folder: Path, letters: str = "abcdefghijklmnopqrstuvwx") -> None:
    """A CLIPTokenizer that spells words with these letters, 50 tokens in all, and gives 16 of them."""
    from transformers import CLIPTokenizer

    words = ("<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters))
    vocabulary = {word: number for number, word in enumerate(words)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16).save_pretrained(folder)


def text_pipeline(folder: Path, dim: int = TEXT["hidden_size"]) -> Path:
    """A pipeline as Stable Diffusion's, of random weights, whose U-Net takes tokens of width ``dim``."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    tiny_text_encoder().save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=dim,
    ).save_pretrained(folder / "unet")  # fmt: skip
    DDIMScheduler(steps_offset=1, clip_sample=False).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def pipeline_from(model: Path, folder: Path, vae_channels: int = 1, text: bool = True) -> Path:
    """A copy of the pipeline ``model`` with a VAE and, if ``text``, a text encoder whose tokenizer gives 16 tokens."""
    shutil.copytree(model, folder)
    index = json.loads((folder / "model_index.json").read_text())
    tiny_vae(vae_channels).save_pretrained(folder / "vae")
    index |= {"vae": ["diffusers", "AutoencoderKL"], "safety_checker": [None, None]}
    if text:
        tiny_text_encoder().save_pretrained(folder / "text_encoder")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 16}')
        index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder

"""The two reference denoisers with one signature, their noise schedule, and their diffusers folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import diffusers
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.class_embedder import ClassEmbedder
from dipgo_deploy.models.digits import CLASSES, SIZE

__all__ = [
    "DiTDenoiser",
    "Denoiser",
    "Kind",
    "UNetDenoiser",
    "build_denoiser",
    "build_scheduler",
    "load_denoiser",
    "save_denoiser",
]

Kind = Literal["unet", "dit"]
"""Architectures of the reference denoisers."""

_EMBEDDER = ["dipgo_deploy.models.class_embedder", "ClassEmbedder"]


class UNetDenoiser(nn.Module):
    """`UNet2DConditionModel` with cross-attention to the tokens of a `ClassEmbedder`."""

    def __init__(self, unet: UNet2DConditionModel, class_embedder: ClassEmbedder) -> None:
        super().__init__()
        self.unet, self.class_embedder = unet, class_embedder

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Predicted noise (B, 1, 16, 16) for `timesteps` (B,) from 0 to 999 and `labels` (B,) from 0 to 10."""
        return self.unet(noisy, timesteps, self.class_embedder(labels), return_dict=False)[0]

    def parts(self) -> dict[str, nn.Module]:
        """The diffusers models by the names of their folders."""
        return {"unet": self.unet, "class_embedder": self.class_embedder}


class DiTDenoiser(nn.Module):
    """`DiTTransformer2DModel`, whose null class is label 10.

    It stays in eval mode even during training. In train mode each block would drop labels independently.
    """

    def __init__(self, transformer: DiTTransformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Predicted noise (B, 1, 16, 16) for `timesteps` (B,) from 0 to 999 and `labels` (B,) from 0 to 10."""
        return self.transformer(noisy, timesteps, labels, return_dict=False)[0]

    def parts(self) -> dict[str, nn.Module]:
        """The diffusers models by the names of their folders."""
        return {"transformer": self.transformer}


Denoiser = UNetDenoiser | DiTDenoiser
"""Either reference denoiser."""


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of both models. Nothing clips or thresholds, so every deterministic sampler is linear."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.0001,
        beta_end=0.015,
        prediction_type="epsilon",
        timestep_spacing="trailing",
        clip_sample=False,
        thresholding=False,
        set_alpha_to_one=True,
    )


def build_denoiser(kind: Kind) -> Denoiser:
    """An untrained denoiser in eval mode. Its weights come from torch's global generator."""
    return (_build_unet() if kind == "unet" else _build_dit()).eval()


def save_denoiser(denoiser: Denoiser, folder: Path) -> None:
    """Save a denoiser as a diffusers folder: `model_index.json` and one folder per part, as safetensors."""
    index: dict[str, object] = {
        "_class_name": "DiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
    }
    for name, part in denoiser.parts().items():
        part.save_pretrained(folder / name)
        index[name] = _EMBEDDER if name == "class_embedder" else ["diffusers", type(part).__name__]
    build_scheduler().save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_denoiser(folder: Path) -> tuple[Denoiser, DDIMScheduler]:
    """Load denoiser and scheduler from a folder that `save_denoiser` wrote.

    Raises InputError where it is not such a folder, OSError where a part is missing.
    """
    index = folder / "model_index.json"
    if not index.exists():
        raise InputError(f"{index} is missing: give a folder like digits-unet or digits-dit")
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    if "transformer" in json.loads(index.read_text()):
        transformer = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
        return DiTDenoiser(transformer).eval(), scheduler
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    embedder = ClassEmbedder.from_pretrained(folder, subfolder="class_embedder")
    return UNetDenoiser(unet, embedder).eval(), scheduler


def _build_unet() -> UNetDenoiser:
    unet = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    nn.init.zeros_(unet.conv_out.weight)
    return UNetDenoiser(unet, ClassEmbedder(num_classes=CLASSES, tokens=4, dim=32))


def _build_dit() -> DiTDenoiser:
    transformer = DiTTransformer2DModel(
        num_attention_heads=5,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=8,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_num_groups=1,
    )
    for block in transformer.transformer_blocks:  # adaLN-Zero: every block starts as the identity
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    nn.init.zeros_(transformer.proj_out_2.weight)
    return DiTDenoiser(transformer)

"""A deployed denoiser in a diffusers pipeline, on a tiny pipeline with random weights.

python examples/drop_in.py save tiny
dipgo-deploy search tiny --method uniform --ratio 0.5 --sampler ddim --steps 10 --out tiny.json
dipgo-deploy export tiny --schedule tiny.json --out engines/tiny
python examples/drop_in.py draw engines/tiny

Run the commands from the root of the repository.
"""

from __future__ import annotations

import sys

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import dipgo_deploy


def save(folder: str) -> None:
    """Save a pipeline that draws 16x16 images of nothing."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    DDIMPipeline(unet, DDIMScheduler(clip_sample=False)).save_pretrained(folder)


def draw(bundle: str) -> None:
    """Draw two images with the pipeline of a bundle. Everything but the denoiser is diffusers' own."""
    pipe = dipgo_deploy.load_pipeline(bundle)
    images = pipe(batch_size=2, num_inference_steps=10, generator=torch.Generator().manual_seed(0)).images
    print(type(pipe).__name__, type(pipe.unet).__name__, len(images), images[0].size)


if __name__ == "__main__":
    {"save": save, "draw": draw}[sys.argv[1]](sys.argv[2])

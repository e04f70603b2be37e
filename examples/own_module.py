"""A denoiser of one's own class: a small convolutional network with random weights, without a config.

dipgo-deploy search examples.own_module:model --granularity layer --method uniform --ratio 0.5 --out own.json
dipgo-deploy export examples.own_module:model --schedule own.json --out engines/own
dipgo-deploy verify engines/own --model examples.own_module:model

Run the commands from the root of the repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dipgo_deploy.models import LoadedModel, Preset, model_from_module

SHAPE = (3, 16, 16)
"""The latent of one image: channels, height, width. The network has no config to read it from."""

STYLE = 8
"""Numbers of the vector that says what to draw."""


class Block(nn.Module):
    """Two convolutions. The first sees the style, the second the timestep. Both add to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: torch.Tensor, style: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Change ``hidden`` (B, width, H, W) by ``style`` (B, width, 1, 1) and ``scale`` (B, 1, 1, 1)."""
        hidden = hidden + torch.tanh(self.mix(hidden + style))
        return hidden + torch.tanh(self.refine(hidden)) * scale


class Denoiser(nn.Module):
    """Four blocks between two convolutions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(SHAPE[0], width, 3, padding=1)
        self.to_style = nn.Linear(STYLE, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(4))
        self.tail = nn.Conv2d(width, SHAPE[0], 3, padding=1)

    def forward(self, noisy: torch.Tensor, time: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Predict the noise in ``noisy`` (B, 3, 16, 16) at ``time`` (B,) for ``style`` (B, 8)."""
        hidden, styled = self.stem(noisy), self.to_style(style)[:, :, None, None]
        for block in self.blocks:
            hidden = block(hidden, styled, torch.cos(time / 1000)[:, None, None, None])
        return self.tail(hidden)


def example(module: nn.Module, shape: tuple[int, ...], rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Inputs of one call: the latent ``sample`` first, then ``timestep``, then any number of others by any name.

    Every input has ``rows`` rows. ``tokens`` is for models of text.
    """
    return {
        "sample": torch.randn(rows, *shape),
        "timestep": torch.full((rows,), 500.0),
        "style": torch.randn(rows, STYLE),
    }


def forward(module: nn.Module, sample: torch.Tensor, timestep: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Call the network. This is the place for other names, other argument orders and outputs that are no tensor."""
    return module(noisy=sample, time=timestep, style=style)


def latent_shape(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The latent of one image. ``config`` is empty, because the network has none."""
    return SHAPE


PRESET = Preset(
    granularities={"stage": ("blocks.*",), "layer": ("blocks.*.mix", "blocks.*.refine")},
    example=example,
    forward=forward,
    latent_shape=latent_shape,
)
"""All that the toolkit has to know about the class."""


def model() -> LoadedModel:
    """The model, as the command line finds it by the name ``examples.own_module:model``."""
    torch.manual_seed(0)
    scheduler = {"_class_name": "DDIMScheduler", "clip_sample": False}
    return model_from_module(Denoiser(), preset=PRESET, scheduler_config=scheduler, guidance="concat", steps=20)

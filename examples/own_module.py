"""A denoiser of one's own class: a small convolutional network with random weights.

dipgo-deploy search examples.own_module:model --blocks 'blocks.*' --method uniform --ratio 0.5 --out own.json
dipgo-deploy export examples.own_module:model --schedule own.json --out engines/own
dipgo-deploy verify engines/own --model examples.own_module:model

Run the commands from the root of the repository.
"""

from __future__ import annotations

import torch
from torch import nn

from dipgo_deploy.models import LoadedModel, Preset, model_from_module

SHAPE = (3, 16, 16)


class Denoiser(nn.Module):
    """Four residual blocks between two convolutions. The timestep scales every block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(SHAPE[0], width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.tail = nn.Conv2d(width, SHAPE[0], 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Predict the noise in ``sample`` (B, 3, 16, 16) at ``timestep`` (B,)."""
        hidden = self.stem(sample)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden)) * torch.cos(timestep / 1000)[:, None, None, None]
        return self.tail(hidden)


def example(module: nn.Module, shape: tuple[int, ...], rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Inputs of one call: the latent first, then the timestep. This network has no text."""
    return {"sample": torch.randn(rows, *shape), "timestep": torch.full((rows,), 500.0)}


PRESET = Preset(
    granularities={},
    example=example,
    forward=lambda module, **inputs: module(**inputs),
    latent_shape=lambda config: SHAPE,
)


def model() -> LoadedModel:
    """The model, as the command line finds it by the name ``examples.own_module:model``."""
    torch.manual_seed(0)
    return model_from_module(Denoiser(), preset=PRESET, steps=20)

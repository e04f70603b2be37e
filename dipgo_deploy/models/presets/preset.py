"""Preset: block patterns, forward and input shapes of a denoiser class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import UsageError

__all__ = ["TEXT_AXES", "Inputs", "Preset", "Shape", "first_output", "patterns_for", "square"]

Inputs = dict[str, torch.Tensor]
"""Inputs of a forward by name, rows first."""

Shape = tuple[int, ...]
"""Shape of one image's latent: (C, H, W), or (C, F, H, W) with frames."""


TEXT_AXES: Mapping[str, Mapping[int, str]] = {
    "encoder_hidden_states": {1: "tokens"},
    "encoder_attention_mask": {1: "tokens"},
}
"""Axes of the text sequence, by the names that diffusers' denoisers give their inputs."""


@dataclass(frozen=True)
class Preset:
    """Block patterns by granularity, and a forward with named, flat inputs. No model file is copied.

    Patterns may match nothing in a given configuration (a model without downsamplers has no blocks there).

    Attributes:
        granularities: block patterns by name.
        example: ``example(module, shape, rows, tokens)`` gives inputs in call order, the latent (rows, *shape) first.
        forward: ``forward(module, **inputs)`` gives the output tensor.
        latent_shape: the latent of one image, ``(C, H, W)`` or with frames ``(C, F, H, W)``, from the config.
        tokens: length of the text sequence in the family's pipelines.
        constant_inputs: inputs whose example is also their default in a run: sizes, masks, guidance weights.
        axes: symbols of the free axes of each input, besides the rows. Inputs that a model lacks are ignored.
        size_step: ``size_step(config)`` gives the number of which the latent's height and width are multiples, or None
            if they cannot be free.
    """

    granularities: Mapping[str, tuple[str, ...]]
    example: Callable[[nn.Module, Shape, int, int], Inputs]
    forward: Callable[..., torch.Tensor]
    latent_shape: Callable[[Mapping[str, Any]], Shape]
    tokens: int = 77
    constant_inputs: Sequence[str] = ()
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=lambda: dict(TEXT_AXES))
    size_step: Callable[[Mapping[str, Any]], int] | None = None


def patterns_for(class_name: str, preset: Preset, granularity: str) -> tuple[str, ...]:
    """Block patterns of a granularity.

    Args:
        class_name: the denoiser's class, for the error message.
        preset: the class's preset.
        granularity: ``stage``, ``layer`` or ``branch``. Not every class has all three.

    Returns:
        The patterns.

    Raises:
        UsageError: the preset has no such granularity.
    """
    if granularity not in preset.granularities:
        known = f"choose {' or '.join(preset.granularities)}, or give" if preset.granularities else "give"
        raise UsageError(f"{class_name} has no granularity {granularity!r}: {known} block patterns as blocks")
    return preset.granularities[granularity]


def first_output(module: nn.Module, **inputs: Any) -> torch.Tensor:
    """The forward of a diffusers denoiser whose inputs are all tensors. Returns the output (rows, C, …)."""
    output: torch.Tensor = module(return_dict=False, **inputs)[0]
    return output


def square(config: Mapping[str, Any]) -> Shape:
    """Latent shape (C, H, W) of a config with ``in_channels`` and ``sample_size``."""
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return int(config["in_channels"]), int(height), int(width)

"""Preset: block patterns, forward and input shapes of a denoiser class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.models.presets.inputs import EXTRA, LEADING, Input, Shape, joined, latent_channels
from dipgo_deploy.models.presets.pipeline_call import PipelineCall

__all__ = [
    "TEXT_AXES",
    "Inputs",
    "Network",
    "Preset",
    "Shape",
    "any_side",
    "extra_inputs",
    "first_output",
    "patterns_for",
    "square",
]

Inputs = dict[str, torch.Tensor]
"""Inputs of a forward by name, rows first."""


@dataclass(frozen=True)
class Network:
    """What the conditioning inputs of a denoiser follow from.

    Attributes:
        config: the denoiser's config.
        latent: shape of one image's latent.
        tokens: length of the text sequence.
        call: how the pipeline calls the denoiser.
    """

    config: Mapping[str, Any]
    latent: Shape
    tokens: int
    call: PipelineCall = field(default_factory=PipelineCall)


TEXT_AXES: Mapping[str, Mapping[int, str]] = {
    "encoder_hidden_states": {1: "tokens"},
    "encoder_attention_mask": {1: "tokens"},
}
"""Axes of the text sequence, by the names that diffusers' denoisers give their inputs."""


MOST_SIDE = 4096
"""Largest side of a latent, in latent pixels, where the network itself has no limit."""


@dataclass(frozen=True)
class Preset:
    """Block patterns by granularity, and a forward with named, flat inputs. No model file is copied.

    Patterns may match nothing in a given configuration (a model without downsamplers has no blocks there).

    Attributes:
        granularities: block patterns by name.
        example: ``example(module, shape, rows, tokens)`` gives inputs in call order, the latent (rows, *shape) first.
            None leaves that to ``inputs``.
        forward: ``forward(module, **inputs)`` gives the output tensor.
        latent_shape: the latent of one image, ``(C, H, W)`` or with frames ``(C, F, H, W)``, from the config.
        tokens: length of the text sequence in the family's pipelines.
        constant_inputs: inputs whose example is also their default in a run: sizes, masks, guidance weights.
        inputs: ``inputs(network)`` gives the conditioning inputs that a config asks for, in call order. Not used if
            there is an ``example``.
        axes: symbols of the free axes of each input, besides the rows. Inputs that a model lacks are ignored.
        sides: ``sides(config)`` gives the heights and widths that the latent may have, or the reason why a network has
            only one size.
    """

    granularities: Mapping[str, tuple[str, ...]]
    example: Callable[[nn.Module, Shape, int, int], Inputs] | None
    forward: Callable[..., torch.Tensor]
    latent_shape: Callable[[Mapping[str, Any]], Shape]
    tokens: int = 77
    constant_inputs: Sequence[str] = ()
    inputs: Callable[[Network], dict[str, Input]] | None = None
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=lambda: dict(TEXT_AXES))
    sides: Callable[[Mapping[str, Any]], SizeRange | str] = lambda _: any_side()


def any_side(step: int = 1, largest: int = MOST_SIDE) -> SizeRange:
    """The sides of latents that a network takes.

    Args:
        step: every side is a multiple of this number.
        largest: side, in latent pixels.

    Returns:
        The sides, from two steps on: the exporter takes a size of 1 for a number.
    """
    return SizeRange(2 * step, 2 * step, largest, step)


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
    """The forward of a diffusers denoiser whose inputs are all tensors.

    Args:
        module: the denoiser.
        **inputs: the latent first. Extra channels are joined to the latent.

    Returns:
        The output (rows, C, …).
    """
    latent = next(iter(inputs))
    inputs[latent] = joined(inputs[latent], inputs)
    output: torch.Tensor = module(return_dict=False, **inputs)[0]
    return output


def extra_inputs(network: Network, patch: int = 1) -> dict[str, Input]:
    """The input channels of a network that are not the latent's, as a conditioning input.

    Args:
        network: the denoiser.
        patch: side of the square of latent pixels that the config counts as one pixel.

    Returns:
        One input of the latent's size, or none.
    """
    channels = int(network.config["in_channels"]) // patch**2 - network.latent[0]
    if network.config.get("addition_embed_type") == "image_hint":
        channels = 0
    name = LEADING if network.call.image_first else EXTRA
    return {name: Input((channels, *network.latent[1:]))} if channels > 0 else {}


def square(config: Mapping[str, Any]) -> Shape:
    """Latent shape (C, H, W) of a config with ``in_channels`` and ``sample_size``."""
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return latent_channels(config), int(height), int(width)

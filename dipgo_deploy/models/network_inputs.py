"""Conditioning inputs of one network: read off an example or a trace, and the lengths of their texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.core.tensors import HEIGHT, TOKENS, WIDTH, SizeRange, TensorSpec
from dipgo_deploy.models.presets import Input
from dipgo_deploy.models.presets.inputs import JOINED

__all__ = [
    "MOST_TOKENS",
    "at_latent",
    "at_length",
    "changed_inputs",
    "conditioning_rows",
    "free_axes",
    "inputs_of_example",
    "latent_sides",
    "size_ranges",
]

MOST_TOKENS = 1024
"""Longest text sequence by default. The pipelines of all presets stay below: Stable Diffusion 3 gives up to 589."""

Axes = Mapping[str, Mapping[int, str]]
"""Symbols of free axes by input, the rows being axis 0."""

_TEXT = "encoder_hidden_states"


def inputs_of_example(
    example: Mapping[str, torch.Tensor], config: Mapping[str, Any], constants: Collection[str]
) -> dict[str, Input]:
    """The conditioning inputs of a preset that gives examples only.

    Args:
        example: inputs of a call by name, one row each, the latent first.
        config: the network's config, for its number of classes.
        constants: inputs whose example is also their default.

    Returns:
        The inputs by name, in call order.
    """
    inputs: dict[str, Input] = {}
    for name, tensor in list(example.items())[1:]:
        if name == "class_labels":
            count = config.get("num_embeds_ada_norm") or config.get("num_class_embeds")
            inputs[name] = Input((), classes=count, null=count)
        elif name in constants:
            inputs[name] = Input.constant(tensor[0].numpy())
        elif name != TIMESTEP:
            inputs[name] = Input(tuple(tensor.shape[1:]))
    return inputs


def free_axes(inputs: Mapping[str, Input], axes: Axes) -> Axes:
    """The free axes that inputs have.

    Args:
        inputs: the conditioning inputs.
        axes: symbols of free axes, of these and of other inputs.

    Returns:
        The part of ``axes`` that exists, with an entry for every input.
    """
    return {
        name: {axis: symbol for axis, symbol in axes.get(name, {}).items() if axis <= len(entry.shape)}
        for name, entry in inputs.items()
    }


def at_length(inputs: Mapping[str, Input], axes: Axes, tokens: int | None) -> dict[str, Input]:
    """The inputs with texts of another length. Inputs that a real call recorded may have any.

    Args:
        inputs: the conditioning inputs.
        axes: symbols of free axes.
        tokens: length of the text. None keeps the lengths.

    Returns:
        The inputs.
    """
    resized = dict(inputs)
    for name, symbols in free_axes(inputs, axes).items():
        for axis in (axis for axis, symbol in symbols.items() if symbol == TOKENS and tokens is not None):
            resized[name] = resized[name].resized(axis - 1, tokens or 0)
    return resized


def at_latent(inputs: Mapping[str, Input], latent: Sequence[int]) -> dict[str, Input]:
    """The inputs with extra channels of the latent's height and width. A recorded call may have had another size.

    Args:
        inputs: the conditioning inputs.
        latent: shape of one image's latent.

    Returns:
        The inputs.
    """
    resized = dict(inputs)
    for name in (name for name in JOINED if name in inputs and len(inputs[name].shape) == len(latent)):
        for axis in (len(latent) - 2, len(latent) - 1):
            resized[name] = resized[name].resized(axis, latent[axis])
    return resized


def latent_sides(latent: Sequence[int], free: Collection[str]) -> dict[int, str]:
    """The axes of height and width, as far as they are free, the rows being axis 0."""
    axes = {len(latent) - 1: HEIGHT, len(latent): WIDTH}
    return {axis: symbol for axis, symbol in axes.items() if symbol in free}


def size_ranges(
    inputs: Mapping[str, Input], axes: Axes, chosen: Mapping[str, SizeRange], *, fixed: bool
) -> dict[str, SizeRange]:
    """The range of every symbol that the inputs have.

    Args:
        inputs: the conditioning inputs.
        axes: symbols of their free axes.
        chosen: ranges that replace the default, by symbol.
        fixed: whether the text has always the same length.

    Returns:
        The range of ``tokens``, from 1 to MOST_TOKENS by default, if there is a text. Two texts of different lengths
        have none, because one symbol cannot describe them. And the ranges of height and width, as far as chosen.
    """
    places = [(inputs[name].shape, axis, symbol) for name in axes for axis, symbol in axes[name].items()]
    lengths = {shape[axis - 1] for shape, axis, symbol in places if symbol == TOKENS}
    sides = {name: chosen[name] for name in (HEIGHT, WIDTH) if name in chosen}
    if len(lengths) != 1:
        return sides
    usual = lengths.pop()
    any_length = SizeRange(1, usual, max(usual, MOST_TOKENS))
    return {TOKENS: SizeRange(usual, usual, usual) if fixed else chosen.get(TOKENS, any_length), **sides}


def conditioning_rows(
    inputs: Mapping[str, Input], labels: torch.Tensor, doubled: bool, embedder: Any = None
) -> dict[str, torch.Tensor]:
    """The rows of images by their labels.

    Args:
        inputs: the conditioning inputs.
        labels: one label per image (B,).
        doubled: put the unconditional rows before the conditional rows.
        embedder: turns labels into the text, if the network has a class embedder or prompts.

    Returns:
        One tensor (rows, ...) for each input.
    """
    rows = {}
    for name, entry in inputs.items():
        if name == _TEXT and embedder is not None:
            null = torch.full_like(labels, int(embedder.config["num_classes"]))
            unconditional, conditional = embedder(null), embedder(labels)
        else:
            unconditional, conditional = entry.rows(labels)
        rows[name] = torch.cat([unconditional, conditional]) if doubled else conditional
    return rows


def changed_inputs(own: Mapping[str, Input], specs: Sequence[TensorSpec]) -> dict[str, Input | None]:
    """How the inputs of a trace differ from the inputs that a config asks for.

    Args:
        own: the inputs that the config asks for.
        specs: the inputs of the trace, the latent first.

    Returns:
        Inputs of other names or shapes, without defaults. None for an input that the trace lacks.
    """
    traced = {spec.name: spec for spec in specs[1:] if spec.name != TIMESTEP}
    changed: dict[str, Input | None] = {name: None for name in own if name not in traced}
    for name, spec in traced.items():
        known = own[name].shape if name in own else ()
        shape = tuple(dim if isinstance(dim, int) else known[axis] for axis, dim in enumerate(spec.shape[1:]))
        if name not in own or known != shape:
            changed[name] = _blank(shape, spec.dtype)
    return changed


def _blank(shape: tuple[int, ...], dtype: str) -> Input:
    """An input without a known default: zeros for whole numbers, standard normal numbers otherwise."""
    return Input.constant(np.zeros(shape, dtype)) if dtype.startswith("int") else Input(shape)

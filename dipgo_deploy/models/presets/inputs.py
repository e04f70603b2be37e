"""Conditioning inputs of a denoiser: their shapes, and how a run without a pipeline fills them.

Extra channels and reference tokens are conditioning inputs. A network whose input is wider than its latent has one of

| input | shape of one row | joined to the latent |
|---|---|---|
| ``extra_channels`` | (C', H, W) | after the latent's channels (masks, masked images, depth, control) |
| ``leading_channels`` | (C', H, W) | before the latent's channels (Marigold) |
| ``reference`` | (C, H', W') | its tokens follow the latent's tokens (FLUX Kontext) |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

__all__ = ["EXTRA", "JOINED", "LEADING", "REFERENCE", "Input", "Shape", "joined", "latent_channels"]

EXTRA, LEADING, REFERENCE = "extra_channels", "leading_channels", "reference"
"""Names of the inputs that are joined to the latent."""

JOINED = (EXTRA, LEADING)
"""Inputs that have the latent's height and width."""

Shape = tuple[int, ...]
"""Shape of one image's latent: (C, H, W), or (C, F, H, W) with frames."""


@dataclass(frozen=True)
class Input:
    """A conditioning input.

    Attributes:
        shape: of one row.
        value: the row of a default run. None means standard normal numbers, seeded by the image's label.
        unconditional: the row without condition under guidance. None means ``value``, or zeros without a value.
        classes: number of classes, if the input is a class label.
        null: label of "no class". None if the model has none, so that both halves get the label.
    """

    shape: Shape
    value: np.ndarray | None = None
    unconditional: np.ndarray | None = None
    classes: int | None = None
    null: int | None = None

    @classmethod
    def constant(cls, value: Any, unconditional: Any = None) -> Input:
        """An input with a default row.

        Args:
            value: the row.
            unconditional: the row without condition, if it differs.

        Returns:
            The input. Floats become float32.
        """
        row = _array(value)
        return cls(row.shape, row, None if unconditional is None else _array(unconditional))

    def resized(self, axis: int, size: int) -> Input:
        """The same input with another size of one axis. Default rows are repeated or cut."""
        if self.shape[axis] == size:
            return self
        values = (
            None if row is None else np.take(row, range(size), axis, mode="wrap")
            for row in (self.value, self.unconditional)
        )
        value, unconditional = values
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return replace(self, shape=shape, value=value, unconditional=unconditional)

    def example(self, rows: int) -> torch.Tensor:
        """Example rows (rows, *shape): the default, class numbers, or standard normal numbers."""
        if self.classes is not None:
            return torch.arange(rows) % self.classes
        if self.value is None:
            return torch.randn(rows, *self.shape)
        return torch.as_tensor(self.value).expand(rows, *self.shape).clone()

    def rows(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unconditional and conditional rows of images.

        Args:
            labels: one label per image (B,).

        Returns:
            Two tensors (B, *shape).
        """
        if self.classes is not None:
            return (labels if self.null is None else torch.full_like(labels, self.null)), labels
        if self.value is None:
            rows = [torch.randn(self.shape, generator=torch.Generator().manual_seed(int(n))) for n in labels]
            return torch.zeros(len(labels), *self.shape), torch.stack(rows)
        first = self.value if self.unconditional is None else self.unconditional
        before, after = (torch.as_tensor(row).expand(len(labels), *self.shape) for row in (first, self.value))
        return before, after


def _array(row: Any) -> np.ndarray:
    array = np.asarray(row)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def latent_channels(config: Mapping[str, Any], learned_variance: bool = False) -> int:
    """Channels of the sampler's latent, from the channels of the network's input and output.

    Args:
        config: the denoiser's config, with ``in_channels`` and possibly ``out_channels``.
        learned_variance: whether the scheduler reads a variance from the second half of the output.

    Returns:
        The channels. The network's other input channels are conditioning.
    """
    inside = int(config["in_channels"])
    outside = int(config.get("out_channels") or inside)
    if config.get("addition_embed_type") == "image_hint":
        inside -= _HINT_CHANNELS
    if outside == 2 * inside or (learned_variance and outside % 2 == 0):
        return outside // 2
    return min(inside, outside)


_HINT_CHANNELS = 4
"""Channels that a UNet with ``image_hint`` computes from its hint and joins to its input itself."""


def joined(latent: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Join a latent and its extra channels. They are removed from ``inputs``.

    Args:
        latent: (rows, C, ...).
        inputs: other inputs by name.

    Returns:
        The network's input (rows, C + C', ...).
    """
    parts = (inputs.pop(LEADING, None), latent, inputs.pop(EXTRA, None))
    present = [part for part in parts if part is not None]
    return torch.cat(present, dim=1) if len(present) > 1 else latent

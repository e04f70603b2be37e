"""The latent of a pipeline's call, and the conditioning that pipelines join to the latent.

Inpainting, depth, control and upscaling pipelines join extra channels to the latent. FLUX packs latents into tokens,
and Kontext appends the tokens of a reference image. The graphs have an input for each of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.models.presets.inputs import EXTRA, LEADING, REFERENCE
from dipgo_deploy.models.presets.mmdit import pack, positions, unpack

__all__ = ["POSITIONS", "LatentLayout", "PackedLayout", "RefusedCall"]

POSITIONS = ("img_ids", "txt_ids")
"""Position ids of FLUX, which the graphs hold as constants."""


class RefusedCall(UsageError):
    """A call outside a bundle's contract. With ``fallback=True`` the PyTorch model answers the call instead."""


class LatentLayout:
    """Where the latent is in the network's first argument.

    Args:
        shape: of one image's latent, (C, H, W) or (C, F, H, W).
        inputs: the inputs of the graphs.
    """

    def __init__(self, shape: Sequence[int], inputs: Sequence[TensorSpec]) -> None:
        self.shape = tuple(shape)
        self._sizes = {spec.name: spec.shape[1:] for spec in inputs}
        self._channels = {LEADING: self._count(LEADING), "": self.shape[0], EXTRA: self._count(EXTRA)}

    def _count(self, name: str) -> int:
        return int(self._sizes[name][0]) if name in self._sizes else 0

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Take the latent and its conditioning apart.

        Args:
            tensor: the network's first argument.

        Returns:
            The latent (rows, C, ...), and the conditioning by name.

        Raises:
            RefusedCall: the argument does not have the channels or tokens that were traced.
        """
        return self._split_channels(tensor)

    def _split_channels(self, tensor: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        count = sum(self._channels.values())
        if count == self.shape[0]:
            return tensor, {}
        if tensor.shape[1] != count:
            raise RefusedCall(
                f"the bundle takes {count} channels, {self.shape[0]} of the latent and {count - self.shape[0]} of "
                f"conditioning, got {tensor.shape[1]}: use the pipeline of the model that was traced"
            )
        parts = dict(zip(self._channels, tensor.split(list(self._channels.values()), dim=1), strict=True))
        return parts.pop(""), {name: part for name, part in parts.items() if name in self._sizes}

    def joined_again(self, prediction: torch.Tensor) -> torch.Tensor:
        """A prediction (rows, C or 2C, ...) in the form that the class returns."""
        return prediction

    def check_positions(self, arguments: Mapping[str, Any]) -> None:
        """Raise RefusedCall for position ids other than those that were traced. Only FLUX has any."""


class PackedLayout(LatentLayout):
    """The layout of FLUX, whose tokens are squares of 2 by 2 latent pixels."""

    def __init__(self, shape: Sequence[int], inputs: Sequence[TensorSpec]) -> None:
        super().__init__(shape, inputs)
        self._height, self._width = self.shape[1:]
        self._reference = self._reference_size()
        self._ids = positions(self._height, self._width)
        self._own = len(self._ids)
        if self._reference is not None:
            self._ids = torch.cat([self._ids, positions(*self._reference, 1)])
        self._accepted: dict[str, torch.Tensor] = {}

    def _reference_size(self) -> tuple[int, int] | None:
        if REFERENCE not in self._sizes:
            return None
        height, width = self._sizes[REFERENCE][1:]
        return int(height), int(width)

    def split(self, tensor: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See LatentLayout."""
        expected = (len(self._ids), 4 * sum(self._channels.values()))
        if tuple(tensor.shape[1:]) != expected:
            extra, remedy = "", "set height and width"
            if self._reference is not None:
                extra = f" and a reference image whose latent is {self._reference}"
                remedy += ", and pass an image of that size with _auto_resize=False"
            raise RefusedCall(
                f"the bundle is made for latents of shape {self.shape}{extra}, which are {expected[0]} tokens of "
                f"{expected[1]}, got {tensor.shape[1]} of {tensor.shape[2]}: {remedy}"
            )
        latent, inputs = self._split_channels(unpack(tensor[:, : self._own], self._height, self._width))
        if self._reference is not None:
            inputs[REFERENCE] = unpack(tensor[:, self._own :], *self._reference)
        return latent, inputs

    def joined_again(self, prediction: torch.Tensor) -> torch.Tensor:
        """See LatentLayout. Pipelines take the first tokens, so none are appended for a reference."""
        return pack(prediction)

    def check_positions(self, arguments: Mapping[str, Any]) -> None:
        """See LatentLayout. Ids that were accepted once are not compared again."""
        for name in POSITIONS:
            ids = arguments.get(name)
            if isinstance(ids, torch.Tensor) and ids is not self._accepted.get(name):
                self._check_ids(name, ids)
                self._accepted[name] = ids

    def _check_ids(self, name: str, ids: torch.Tensor) -> None:
        flat = ids.detach().float().cpu().reshape(-1, ids.shape[-1])[: ids.shape[-2]]
        expected = self._ids if name == POSITIONS[0] else torch.zeros(len(flat), 3)
        if flat.shape != expected.shape or not torch.equal(flat, expected):
            raise RefusedCall(
                f"{name} are not those of a latent of shape {self.shape}, which the graphs hold as constants: leave "
                "position ids to the pipeline, or run the PyTorch model (fallback=True)"
            )

"""The network as a sampler sees it: latent and timestep in, guided prediction out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.models.cast import network_dtype

__all__ = ["Denoiser", "GuidedNetwork"]


class Denoiser(Protocol):
    """A network with named inputs.

    The latent is ``latent_name``. Without that attribute, the latent is the first parameter of the module's forward.
    """

    @property
    def module(self) -> nn.Module:
        """The live model, in eval mode."""
        ...

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The prediction (rows, C or 2C, H, W)."""
        ...


class GuidedNetwork:
    """One batch of conditioned calls of ``model`` under the contract's guidance.

    The network runs in its module's dtype. Latents and sampler use ``sampler_dtype``, which is float32 or wider.

    Args:
        model: the network.
        contract: gives guidance layout and latent shape.
        conditioning: every network input but latent and timestep, by name, rows first.
        guidance_scale: weight of the conditional output under concatenated guidance.
    """

    def __init__(
        self, model: Denoiser, contract: Contract, conditioning: Mapping[str, Any], guidance_scale: float
    ) -> None:
        self.model, self.contract, self.scale = model, contract, guidance_scale
        self.device, self.dtype = next(model.module.parameters()).device, network_dtype(model.module)
        self.sampler_dtype = torch.promote_types(self.dtype, torch.float32)
        self._latent_name = _latent_name(model)
        self._conditioning = {name: self._cast(torch.as_tensor(rows)) for name, rows in conditioning.items()}

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def rows_of(self, latent: torch.Tensor) -> torch.Tensor:
        """A latent (B, C, H, W) as the network's input (rows, C, H, W), doubled under concatenated guidance."""
        rows = self._cast(latent)
        return torch.cat([rows, rows]) if self.contract.guidance == "concat" else rows

    def __call__(self, latent: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """The network's output (rows, C or 2C, H, W) for a scaled latent (B, C, H, W)."""
        return self.many([latent], [timestep])[0]

    def many(
        self, latents: Sequence[torch.Tensor], timesteps: Sequence[float | torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Outputs for several latents and timesteps under the same conditioning, in one call.

        Args:
            latents: scaled latents (B, C, H, W).
            timesteps: one per latent. A scalar tensor carries its gradient.

        Returns:
            One output (rows, C or 2C, H, W) per latent.
        """
        rows = [self.rows_of(latent) for latent in latents]
        times = [_times_of(part, timestep) for part, timestep in zip(rows, timesteps, strict=True)]
        conditioning = {name: torch.cat([tensor] * len(rows)) for name, tensor in self._conditioning.items()}
        inputs = {self._latent_name: torch.cat(rows), TIMESTEP: torch.cat(times), **conditioning}
        return self.model.forward(**inputs).split([len(part) for part in rows])

    def guided(self, prediction: torch.Tensor) -> torch.Tensor:
        """What the sampler sees, (B, C, H, W), from all rows of the network's output."""
        rows = prediction.to(self.sampler_dtype)
        if rows.shape[1] == 2 * self.contract.latent_shape[0]:
            rows = rows[:, : rows.shape[1] // 2]  # The second half is a learned variance.
        if self.contract.guidance == "none":
            return rows
        unconditional, conditional = rows.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


def _times_of(rows: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
    """The timestep of every row, float32."""
    return torch.as_tensor(timestep, dtype=torch.float32, device=rows.device).expand(len(rows))


def _latent_name(model: Denoiser) -> str:
    name = getattr(model, "latent_name", None)
    return str(name) if name else next(iter(inspect.signature(model.module.forward).parameters))

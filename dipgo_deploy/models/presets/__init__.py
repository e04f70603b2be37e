"""Presets of the supported denoiser classes: block patterns, and a forward with named, flat inputs."""

from __future__ import annotations

from collections.abc import Mapping

from dipgo_deploy.models.presets.dit import DIT, PIXART, WAN
from dipgo_deploy.models.presets.inputs import Input
from dipgo_deploy.models.presets.mmdit import FLUX, SD3
from dipgo_deploy.models.presets.pipeline_call import PipelineCall, read_pipeline_call
from dipgo_deploy.models.presets.preset import Network, Preset, patterns_for
from dipgo_deploy.models.presets.unet import CONDITIONED, PLAIN

__all__ = ["PRESETS", "Input", "Network", "PipelineCall", "Preset", "patterns_for", "read_pipeline_call"]

PRESETS: Mapping[str, Preset] = {
    "UNet2DConditionModel": CONDITIONED,
    "UNet2DModel": PLAIN,
    "DiTTransformer2DModel": DIT,
    "PixArtTransformer2DModel": PIXART,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": FLUX,
    "WanTransformer3DModel": WAN,
}
"""Preset of every supported diffusers denoiser class."""

"""The scheduler of a model whose source has none: that of the published model that the denoiser resembles most.

Flow-matching and noise-prediction models cannot use each other's schedulers, and noise schedules differ between
families. The denoiser's class, and a few entries of its config, tell the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dipgo_deploy.core.disk import read_json
from dipgo_deploy.models.schedulers import is_flow_scheduler

__all__ = ["assumed_scheduler"]

_CONFIGS = Path(__file__).parent / "configs"

_DDIM = "DDIMScheduler"

_Config = Mapping[str, Any]


def _unet(config: _Config) -> str:
    if config.get("addition_embed_type") == "text_time":
        return "sdxl"
    # The 768-pixel model of Stable Diffusion 2 predicts velocity, the 512-pixel model predicts noise.
    return "sd21" if (config.get("cross_attention_dim"), config.get("sample_size")) == (1024, 96) else "sd15"


_PUBLISHED: Mapping[str, Callable[[_Config], str]] = {
    "DiTTransformer2DModel": lambda config: "dit-xl-2-256",
    "FluxTransformer2DModel": lambda config: "flux-dev" if config.get("guidance_embeds") else "flux-schnell",
    "PixArtTransformer2DModel": lambda config: "pixart-alpha-512",
    "SD3Transformer2DModel": lambda config: "sd3-medium",
    "UNet2DConditionModel": _unet,
    "WanTransformer3DModel": lambda config: "wan2.1-1.3b",
}
"""The shipped config whose scheduler a denoiser of a class most likely has, by its own config."""

_CHANGE = "--sampler and --sampler-option change it"


def assumed_scheduler(class_name: str, config: _Config, options: _Config) -> tuple[dict[str, Any], str]:
    """The scheduler config of a model that names no scheduler class.

    Flow-matching models get the published scheduler. Other models get DDIM on the published noise schedule, or on that
    of diffusers' defaults if the class is unknown.

    Args:
        class_name: the denoiser's class.
        config: the denoiser's config.
        options: scheduler options that are known nevertheless.

    Returns:
        The scheduler config with its class, and a sentence that says what was assumed.
    """
    if class_name not in _PUBLISHED:
        scheduler: dict[str, Any] = {"_class_name": _DDIM, **options}
        return scheduler, f"no scheduler was found, {_DDIM} with diffusers' defaults is taken: {_CHANGE}"
    published = read_json(_CONFIGS / f"{_PUBLISHED[class_name](config)}.json")
    name, title = published["scheduler"]["_class_name"], str(published["title"]).split(",")[0]
    name = name if is_flow_scheduler(name, published["scheduler"]) else _DDIM
    scheduler = {**published["scheduler"], **options, "_class_name": name}
    return scheduler, f"no scheduler was found, {name} on the noise levels of {title} is taken: {_CHANGE}"

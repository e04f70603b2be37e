"""A live ``nn.Module`` as a model. All other sources use this module in the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.assumed_scheduler import assumed_scheduler
from dipgo_deploy.models.loaded_model import DTYPES, LoadedModel
from dipgo_deploy.models.presets import PRESETS, Preset

__all__ = ["default_component", "model_from_module"]


def model_from_module(
    module: nn.Module,
    *,
    dtype: str = "float32",
    folder: Path | None = None,
    component: str | None = None,
    scheduler_config: Mapping[str, Any] | None = None,
    class_embedder: Any = None,
    preset: Preset | None = None,
    latent_shape: tuple[int, ...] | None = None,
    text_tokens: int | None = None,
    guidance: Guidance | None = None,
    steps: int | None = None,
    assumptions: tuple[str, ...] = (),
) -> LoadedModel:
    """Wrap a live module. It is cast to ``dtype`` in place, and its gradients are switched off.

    Args:
        module: the network.
        dtype: a name of DTYPES.
        folder: the pipeline folder that the module came from.
        component: the module's name in a pipeline. Default: diffusers' usual name for this class.
        scheduler_config: the model's own scheduler config. Without ``_class_name`` a scheduler is assumed.
        class_embedder: turns class labels into cross-attention tokens.
        preset: inputs, forward and latent shape. Needed for a class without a built-in preset.
        latent_shape: overrides the shape that config and preset give.
        text_tokens: overrides the preset's length of the text.
        guidance: overrides the guidance layout of the class's pipelines.
        steps: overrides the number of steps of the class's pipelines.
        assumptions: what the source left open, see LoadedModel.

    Returns:
        The model, ready to be traced.

    Raises:
        InputError: the class has no preset, or neither config nor arguments give a latent shape.
    """
    class_name = type(module).__name__
    preset = preset or PRESETS.get(class_name)
    if preset is None:
        raise InputError(f"{class_name} is not a supported denoiser ({', '.join(PRESETS)}): pass a Preset for it")
    config = dict(getattr(module, "config", {}))
    scheduler = dict(scheduler_config or {})
    if "_class_name" not in scheduler:
        scheduler, assumption = assumed_scheduler(class_name, config, scheduler)
        assumptions = (*assumptions, assumption)
    # diffusers overrides `to` and warns about modules that it keeps in float32. A module in this dtype is not copied.
    module = nn.Module.to(module, DTYPES[dtype])
    return LoadedModel(
        module=module.eval().requires_grad_(False),
        class_name=class_name,
        config=config,
        dtype=dtype,
        folder=folder,
        component=component or default_component(class_name),
        scheduler_config=scheduler,
        latent_shape=latent_shape or _latent_shape(preset, config, class_name),
        preset=preset,
        class_embedder=class_embedder,
        text_tokens=text_tokens,
        guidance=guidance,
        steps=steps,
        assumptions=assumptions,
    )


def default_component(class_name: str) -> str:
    """Name of a denoiser of this class in a diffusers pipeline: ``unet`` or ``transformer``."""
    if class_name not in PRESETS:
        return "denoiser"
    return "unet" if class_name.startswith("UNet") else "transformer"


def _latent_shape(preset: Preset, config: Mapping[str, Any], class_name: str) -> tuple[int, ...]:
    try:
        return preset.latent_shape(config)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"the config of this {class_name} gives no latent shape: set sample_size in it") from None

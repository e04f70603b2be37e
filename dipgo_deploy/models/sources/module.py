"""A live ``nn.Module`` as a model. All other sources use this module in the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.assumed_scheduler import assumed_scheduler
from dipgo_deploy.models.cast import cast_in_place
from dipgo_deploy.models.identity.live import check_live, unwrapped
from dipgo_deploy.models.loaded_model import DTYPES, LoadedModel
from dipgo_deploy.models.presets import PRESETS, PipelineCall, Preset
from dipgo_deploy.models.presets.inputs import EXTRA, latent_channels

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
    call: PipelineCall | None = None,
    assumptions: tuple[str, ...] = (),
) -> LoadedModel:
    """Wrap a live module. It is cast to ``dtype`` in place, and its gradients are switched off.

    What the module does besides class, config and weights is part of its identity, see ``LoadedModel.behaviour``.

    In half precision, the modules that its class keeps in float32 stay in float32, as in diffusers.

    Args:
        module: the network. Of a module of ``torch.compile``, the original is taken.
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
        call: how the pipeline calls the network. Default: what the folder says.
        assumptions: what the source left open, see LoadedModel.

    Returns:
        The model, ready to be traced.

    Raises:
        InputError: the class has no preset, neither config nor arguments give a latent shape, or the module is
            quantised, offloaded, or keeps values between steps.
    """
    module = unwrapped(module)
    class_name = type(module).__name__
    preset = preset or PRESETS.get(class_name)
    if preset is None:
        raise InputError(f"{class_name} is not a supported denoiser ({', '.join(PRESETS)}): pass a Preset for it")
    check_live(module)
    config = dict(getattr(module, "config", {}))
    scheduler = dict(scheduler_config or {})
    if "_class_name" not in scheduler:
        scheduler, assumption = assumed_scheduler(class_name, config, scheduler)
        assumptions = (*assumptions, assumption)
    model = LoadedModel(
        module=cast_in_place(module, DTYPES[dtype]).eval().requires_grad_(False),
        class_name=class_name,
        config=config,
        dtype=dtype,
        folder=folder,
        component=component or default_component(class_name),
        scheduler_config=scheduler,
        latent_shape=latent_shape or _latent_shape(preset, config, class_name, scheduler),
        preset=preset,
        class_embedder=class_embedder,
        text_tokens=text_tokens,
        guidance=guidance,
        steps=steps,
        call=call,
        assumptions=assumptions,
    )
    return replace(model, assumptions=(*assumptions, *_assumed_inputs(model)))


def _assumed_inputs(model: LoadedModel) -> Iterator[str]:
    """What is assumed about the inputs of a denoiser without its pipeline."""
    if model.preset.example is not None or model.pipeline_call.pipeline is not None:
        return
    remedy = "load the whole pipeline folder if it is not"
    if EXTRA in model.inputs:
        yield f"the latent is the first {model.latent_shape[0]} channels of the network's input: {remedy}"
    if "timestep_cond" in model.inputs:
        yield f"the guidance weight that the network embeds is that of latent consistency models: {remedy}"


def default_component(class_name: str) -> str:
    """Name of a denoiser of this class in a diffusers pipeline: ``unet`` or ``transformer``."""
    if class_name not in PRESETS:
        return "denoiser"
    return "unet" if class_name.startswith("UNet") else "transformer"


def _latent_shape(
    preset: Preset, config: Mapping[str, Any], class_name: str, scheduler_config: Mapping[str, Any]
) -> tuple[int, ...]:
    try:
        shape = preset.latent_shape(config)
        if preset.example is not None or shape[0] != latent_channels(config):
            return shape
        learned = str(scheduler_config.get("variance_type", "")).startswith("learned")
        return (latent_channels(config, learned), *shape[1:])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"the config of this {class_name} gives no latent shape: set sample_size in it") from None

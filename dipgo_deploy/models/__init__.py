"""Models: loading, block presets, samplers, and the reference models that ship with the package."""

from __future__ import annotations

from dipgo_deploy.models.contracts import make_contract
from dipgo_deploy.models.loading import REFERENCE_MODELS, LoadedModel, load_model, model_from_module
from dipgo_deploy.models.presets import PRESETS, Preset, patterns_for
from dipgo_deploy.models.prompts import with_prompts
from dipgo_deploy.models.samplers import SAMPLERS, sampler_spec, scheduler_from_spec

__all__ = [
    "PRESETS",
    "REFERENCE_MODELS",
    "SAMPLERS",
    "LoadedModel",
    "Preset",
    "load_model",
    "make_contract",
    "model_from_module",
    "patterns_for",
    "sampler_spec",
    "scheduler_from_spec",
    "with_prompts",
]

"""Models: loading, block presets, samplers, and the reference models that ship with the package."""

from __future__ import annotations

from dipgo_deploy.models.contracts import make_contract
from dipgo_deploy.models.input_shapes import with_sizes
from dipgo_deploy.models.learned_check import check_learned
from dipgo_deploy.models.learned_scheduler import LearnedScheduler
from dipgo_deploy.models.loaded_model import LoadedModel
from dipgo_deploy.models.presets import PRESETS, Preset, patterns_for
from dipgo_deploy.models.prompts import with_prompts
from dipgo_deploy.models.samplers import SAMPLERS, sampler_spec
from dipgo_deploy.models.schedulers import scheduler_from_spec
from dipgo_deploy.models.sources import REFERENCE_MODELS, load_model
from dipgo_deploy.models.sources.module import model_from_module
from dipgo_deploy.models.sources.pipeline import model_from_pipeline
from dipgo_deploy.models.sources.random import load_random, read_random_config, shipped_configs

__all__ = [
    "PRESETS",
    "REFERENCE_MODELS",
    "SAMPLERS",
    "LearnedScheduler",
    "LoadedModel",
    "Preset",
    "check_learned",
    "load_model",
    "load_random",
    "make_contract",
    "model_from_module",
    "model_from_pipeline",
    "patterns_for",
    "read_random_config",
    "sampler_spec",
    "scheduler_from_spec",
    "shipped_configs",
    "with_prompts",
    "with_sizes",
]

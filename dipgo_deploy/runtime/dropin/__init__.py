"""The diffusers drop-in: a bundle in the place of a pipeline's denoiser, and the whole pipeline around it."""

from __future__ import annotations

from dipgo_deploy.runtime.dropin.denoiser import DeployedDenoiser
from dipgo_deploy.runtime.dropin.drawing import Drawn, PromptOptions, draw_prompts
from dipgo_deploy.runtime.dropin.pipeline import call_arguments, load_pipeline
from dipgo_deploy.runtime.dropin.refusal import RefusedCall
from dipgo_deploy.runtime.dropin.stepping import StepOptions

__all__ = [
    "DeployedDenoiser",
    "Drawn",
    "PromptOptions",
    "RefusedCall",
    "StepOptions",
    "call_arguments",
    "draw_prompts",
    "load_pipeline",
]

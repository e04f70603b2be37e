"""The diffusers drop-in: a bundle in place of a pipeline's denoiser, and whole pipelines of bundles."""

from __future__ import annotations

from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.pipeline.calls import RefusedCall
from dipgo_deploy.pipeline.denoiser import DeployedDenoiser
from dipgo_deploy.pipeline.drawing import PromptImages, PromptOptions, draw_prompts
from dipgo_deploy.pipeline.load import call_arguments, load_pipeline

__all__ = [
    "DeployedDenoiser",
    "PromptImages",
    "PromptOptions",
    "RefusedCall",
    "RunOptions",
    "call_arguments",
    "draw_prompts",
    "load_pipeline",
]

"""Timed passes of a pipeline's other components: text encoders before the denoiser, a VAE's decoder after it.

Only time matters here, so a pass is a call without arguments, on inputs of the right shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.pipeline_folder import VAE, load_module, token_count, using_component

__all__ = ["PipelineRun", "load_component"]

Run = Callable[[], object]


@dataclass(frozen=True)
class PipelineRun:
    """Sizes of one run of a pipeline.

    Attributes:
        prompts: number of prompts encoded together: 2 under guidance, where the negative prompt counts.
        latents: shape of the latents, (B, C, H, W).
        device: ``cpu`` or ``cuda``.
    """

    prompts: int
    latents: tuple[int, ...]
    device: str = "cpu"


def load_component(folder: Path, name: str, run: PipelineRun) -> Run:
    """Load a component and run it once.

    Args:
        folder: the pipeline's folder.
        name: one of `component_names`.
        run: sizes of its inputs.

    Returns:
        One pass of the component, which waits for the device to finish.

    Raises:
        MissingError: transformers is needed and not installed.
        InputError: the component cannot be loaded, is unknown or does not fit ``run``.
    """
    with using_component(folder, name) as (component_class, home):
        module = load_module(component_class, home).to(run.device)
        if name == VAE:
            timed_pass = _decoder_pass(module, run)
        else:
            timed_pass = _encoder_pass(module, token_count(folder, name, module), run)
        timed_pass()
    return timed_pass


def _encoder_pass(module: Any, tokens: int, run: PipelineRun) -> Run:
    vocabulary = module.get_input_embeddings().num_embeddings
    ids = torch.arange(run.prompts * tokens, device=run.device).reshape(run.prompts, tokens) % vocabulary
    return _synchronized(lambda: module(input_ids=ids), run.device)


def _decoder_pass(module: Any, run: PipelineRun) -> Run:
    channels = module.config.get("latent_channels")
    if channels != run.latents[1]:
        raise InputError(
            f"the vae decodes {channels} channels, but the latents have {run.latents[1]}: use the model's own vae"
        )
    latents = torch.randn(run.latents, generator=torch.Generator().manual_seed(0)).to(run.device)
    return _synchronized(lambda: module.decode(latents), run.device)


def _synchronized(call: Run, device: str) -> Run:
    def run() -> None:
        with torch.inference_mode():
            call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run

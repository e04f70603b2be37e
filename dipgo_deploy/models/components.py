"""What a pipeline runs around its denoiser: text encoders before it, a VAE's decoder after it.

Only their time is of interest here, so a component is a call without arguments, on inputs of the right shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.pipeline_folder import VAE, load_module, running, token_count

__all__ = ["PipelineRun", "load_component"]

Run = Callable[[], object]


@dataclass(frozen=True)
class PipelineRun:
    """Sizes of one run of a pipeline.

    ``prompts`` are encoded at once: one, and under guidance the negative one too; ``latents`` is (B, C, H, W);
    ``device`` is ``cpu`` or ``cuda``.
    """

    prompts: int
    latents: tuple[int, ...]
    device: str = "cpu"


def load_component(folder: Path, name: str, run: PipelineRun) -> Run:
    """Load a component of `component_names` and return one pass of it, which waits until the device is done.

    Raises MissingError where transformers is needed and absent, InputError where the folder cannot be loaded, holds
    something unknown or does not fit ``run``.
    """
    with running(folder, name) as (kind, home):
        module = load_module(kind, home).to(run.device)
        one_pass = _decoding(module, run) if name == VAE else _encoding(module, token_count(folder, name, module), run)
        one_pass()
    return one_pass


def _encoding(module: Any, tokens: int, run: PipelineRun) -> Run:
    words = module.get_input_embeddings().num_embeddings
    ids = torch.arange(run.prompts * tokens, device=run.device).reshape(run.prompts, tokens) % words
    return _waiting(lambda: module(input_ids=ids), run.device)


def _decoding(module: Any, run: PipelineRun) -> Run:
    channels = module.config.get("latent_channels")
    if channels != run.latents[1]:
        raise InputError(f"the vae decodes {channels} channels, the latents have {run.latents[1]}: use the model's own")
    latents = torch.randn(run.latents, generator=torch.Generator().manual_seed(0)).to(run.device)
    return _waiting(lambda: module.decode(latents), run.device)


def _waiting(act: Run, device: str) -> Run:
    def run() -> None:
        with torch.inference_mode():
            act()
        if device == "cuda":
            torch.cuda.synchronize()

    return run

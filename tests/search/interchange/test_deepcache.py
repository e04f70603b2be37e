"""Programs of imported schedules draw the images that the DeepCache package draws, on a small Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import Bundle, export, load_bundle
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, make_contract, model_from_module
from dipgo_deploy.runtime import open_session
from dipgo_deploy.search.interchange import export_schedule, import_schedule
from tests.models.pipelines import tiny_vae

SCHEDULER = {
    **{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    **{"clip_sample": False, "steps_offset": 1},
}
STEPS, SCALE = 8, 3.0

CASES = [
    *((3, 0, "ddim"), (4, 4, "ddim"), (2, 1, "pndm"), (3, 1, "heun")),
    *(pytest.param(*case, "ddim", marks=pytest.mark.slow) for case in ((2, 1), (5, 2), (3, 3), (2, 5))),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 1, "heun"), (3, 1, "pndm"))),
]
"""Interval, branch and sampler. PNDM and Heun repeat timesteps. The first four see both levels and both samplers."""


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """Two levels of two layers, attention in the outer one."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=12, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return model_from_module(unet, scheduler_config=SCHEDULER, text_tokens=7)


@pytest.fixture(scope="module")
def drawn(model: LoadedModel) -> Callable[[str], tuple[Any, Any]]:
    """``drawn(sampler)``: a pipeline, and a function that draws its latents from noise and text."""
    from diffusers import StableDiffusionPipeline

    from dipgo_deploy.models import sampler_spec, scheduler_from_spec

    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    given = torch.as_tensor(model.conditioning([3], "concat")["encoder_hidden_states"])

    def pipeline(sampler: str) -> tuple[Any, Any]:
        scheduler = scheduler_from_spec(sampler_spec(sampler, STEPS, model.scheduler_config))
        parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
        pipe = StableDiffusionPipeline(
            unet=model.module, vae=tiny_vae(4), scheduler=scheduler, requires_safety_checker=False, **parts
        )
        pipe.set_progress_bar_config(disable=True)

        def run(output: str) -> np.ndarray:
            found = pipe(
                prompt_embeds=given[1:], negative_prompt_embeds=given[:1], latents=noise.clone(), guidance_scale=SCALE,
                num_inference_steps=STEPS, output_type=output, height=16, width=16,
            ).images  # fmt: skip
            return found.numpy() if isinstance(found, torch.Tensor) else np.asarray(found)

        return pipe, run

    return pipeline


@pytest.fixture(scope="module")
def bundle(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    graph = trace(model, granularity="layer").blocks
    contract = make_contract(model, steps=STEPS, guidance="concat")
    schedule = import_schedule("deepcache", {"cache_interval": 3}, graph, contract)
    return load_bundle(export(model, schedule, tmp_path_factory.mktemp("deepcache") / "bundle"))


@pytest.fixture
def theirs() -> Iterator[Any]:
    """The package's helper."""
    return pytest.importorskip("DeepCache", reason="DeepCache 0.1.1 (extra dev) is not installed").DeepCacheSDHelper


@pytest.mark.parametrize(("interval", "branch", "sampler"), CASES)
def test_the_package_draws_the_same_image(interval, branch, sampler, model, drawn, bundle, theirs, tmp_path: Path):
    settings = {"cache_interval": interval, "cache_branch_id": branch}
    contract = make_contract(model, sampler=sampler, steps=STEPS, guidance="concat")
    schedule = import_schedule("deepcache", settings, bundle.blocks, contract)
    again = import_schedule("deepcache", export_schedule("deepcache", schedule), bundle.blocks, contract)
    assert again == schedule
    ours = _latent(bundle, schedule, model)
    pipe, run = drawn(sampler)
    plain = run("latent")
    helper = theirs(pipe=pipe)
    helper.set_params(**settings)
    helper.enable()
    try:
        latent = run("latent")
        image = run("np")
    finally:
        helper.disable()
    assert np.abs(latent - plain).max() > 1e-3, "the cache changes the image"
    assert np.abs(ours - latent).max() <= 1e-4 * np.abs(latent).max()
    with torch.no_grad():
        decoded = pipe.vae.decode(torch.as_tensor(ours) / pipe.vae.config.scaling_factor).sample
    ours_image = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours_image - image).max() <= 1e-4


def _latent(bundle: Bundle, schedule: Any, model: LoadedModel) -> np.ndarray:
    """Our program's latent, from the pipeline's noise and text."""
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1)).numpy()
    session = open_session(bundle, 1, guidance_scale=SCALE, compiled=bundle.compile(schedule))
    return session.run(noise, model.conditioning([3], "concat"))

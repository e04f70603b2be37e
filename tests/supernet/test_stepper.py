"""The sampler's own steps make the image of a pipeline, noise included."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models import load_model, make_contract
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.supernet.rollout import last_latent, reference_trajectory
from dipgo_deploy.supernet.stepper import SamplerStepper
from tests.models.families import ddpm

SEED = 5


@pytest.mark.parametrize("steps", [None, 3])
def test_a_consistency_model_draws_the_image_of_its_pipeline(steps: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    diffusers.ConsistencyModelPipeline(ddpm(), diffusers.CMStochasticIterativeScheduler()).save_pretrained(tmp_path)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(tmp_path)
    contract = make_contract(model, steps=steps)
    assert contract.sampler.steps == (steps or 1)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    generators = [torch.Generator().manual_seed(SEED + image) for image in range(2)]
    expected = pipeline(
        batch_size=2, num_inference_steps=contract.sampler.steps, latents=noise, generator=generators, output_type="pt"
    ).images
    schedule = full_schedule(contract, "stage", "output", (PREDICTION,))
    latent = last_latent(reference_trajectory(model, schedule, noise, {}, seed=SEED))
    assert ((latent / 2 + 0.5).clamp(0, 1) - expected).abs().max() <= 1e-5


def test_a_scheduler_that_fails_in_a_run_is_named() -> None:
    stepper = SamplerStepper(sampler_spec(None, 4, {"_class_name": "SASolverScheduler", "variance_type": "learned"}))
    latent = torch.zeros(1, 4, 8, 8)
    with pytest.raises(InputError, match="SASolverScheduler fails at step 0 .*: choose another sampler"):
        stepper.advance(0, latent, latent)

"""A user's own pipeline with its own scheduler and a deployed denoiser: accepted, and the plain pipeline's latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from dipgo_deploy.bundle import Bundle, load_bundle
from dipgo_deploy.bundle.write import copy_bundle
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models import load_model, make_contract
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.pipeline import DeployedDenoiser, RefusedCall
from tests.models.sources.test_pipeline_scheduler import with_scheduler
from tests.pipeline.pipelines import SIDE, drawn

pytestmark = pytest.mark.filterwarnings("ignore")

CALL = {"prompt": "a cat", "guidance_scale": 4.0, "height": SIDE, "width": SIDE, "output_type": "latent"}


def with_contract(bundle: Bundle, folder: Path, steps: int) -> Bundle:
    """The bundle's graphs under the default contract of a folder with the same denoiser. Every block is computed."""
    contract = replace(make_contract(load_model(folder, meta=True), steps=steps), model_digest="")
    schedule = full_schedule(contract, bundle.schedule.granularity, "output", bundle.blocks.block_names)
    program = bundle.compile(schedule).program
    return replace(bundle, schedule=schedule, program=program, manifest=replace(bundle.manifest, contract=contract))


def own_pipeline(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("PNDMScheduler", {"steps_offset": 0, "skip_prk_steps": False}, 4),
        ("LCMScheduler", {}, 4),
        ("TCDScheduler", {}, 4),
        ("KDPM2AncestralDiscreteScheduler", {}, 3),
        ("DPMSolverSinglestepScheduler", {"solver_order": 3}, 7),
    ],
)
def test_the_folders_own_pipeline_is_accepted_and_draws_the_same(
    name, options, steps, sd_bundle, sd_pipeline, tmp_path
):
    folder = with_scheduler(sd_pipeline, tmp_path / "model", name, options)
    call = {**CALL, "num_inference_steps": steps, **({"eta": 0.3} if name == "TCDScheduler" else {})}
    expected = drawn(own_pipeline(folder), call)
    pipeline = own_pipeline(folder)
    pipeline.unet = DeployedDenoiser.from_bundle(with_contract(load_bundle(sd_bundle), folder, steps), threads=1)
    pipeline.unet.watch(pipeline)
    for _ in range(2):
        assert np.abs(drawn(pipeline, call) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_scheduler_that_skips_its_first_step_is_refused_before_it_fails(sd_bundle, sd_pipeline, tmp_path):
    options = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    folder = with_scheduler(sd_pipeline, tmp_path / "model", "DPMSolverMultistepScheduler", options)
    call = {**CALL, "num_inference_steps": 20}
    with pytest.raises(IndexError):
        drawn(own_pipeline(folder), call)
    pipeline = own_pipeline(folder)
    pipeline.unet = DeployedDenoiser.from_bundle(with_contract(load_bundle(sd_bundle), folder, 20), threads=1)
    pipeline.unet.watch(pipeline)
    with pytest.raises(RefusedCall, match="has its first timestep twice, so diffusers skips the first step .*: choose"):
        drawn(pipeline, call)


def test_a_copy_of_the_denoiser_alone_keeps_the_scheduler_of_its_contract(sd_bundle, tmp_path):
    copy_bundle(load_bundle(sd_bundle), tmp_path / "copy")
    model, sampler = load_bundle(tmp_path / "copy").model, load_bundle(sd_bundle).contract.sampler
    assert model.scheduler_config["_class_name"] == sampler.class_name and model.assumptions == ()
    assert sampler_spec(None, sampler.steps, model.scheduler_config) == sampler

"""Contracts take the timesteps that the pipelines of their families set."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest

from dipgo_deploy.models import make_contract
from dipgo_deploy.models.contracts import timestep_arguments
from tests.models.families import tiny

SHIFTED = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64}


def test_flux_chooses_its_noise_levels_and_shifts_them_by_size():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    found = timestep_arguments(
        "FluxTransformer2DModel", (4, 12, 8), diffusers.FlowMatchEulerDiscreteScheduler, SHIFTED, 4
    )
    assert found == {"sigmas": [1.0, 0.75, 0.5, 0.25], "mu": pytest.approx(calculate_shift(24, 16, 64, 0.5, 1.15))}


def test_stable_diffusion_3_shifts_alone_and_only_where_its_config_says_so():
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    name, scheduler = "SD3Transformer2DModel", diffusers.FlowMatchEulerDiscreteScheduler
    found = timestep_arguments(name, (4, 12, 8), scheduler, SHIFTED, 4)
    assert found == {"mu": pytest.approx(calculate_shift(24, 16, 64, 0.5, 1.16))}
    assert timestep_arguments(name, (4, 12, 8), scheduler, {}, 4) == {}


def test_others_take_the_number_of_steps_alone():
    assert timestep_arguments("UNet2DConditionModel", (4, 8, 8), diffusers.DDIMScheduler, SHIFTED, 4) == {}
    assert timestep_arguments("FluxTransformer2DModel", (4, 8, 8), diffusers.DDIMScheduler, SHIFTED, 4) == {}


def test_a_contract_of_flux_has_the_timesteps_of_its_pipeline():
    model = replace(tiny("flux"), scheduler_config={"_class_name": "FlowMatchEulerDiscreteScheduler", **SHIFTED})
    contract = make_contract(model, sampler="flow-euler", steps=4)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SHIFTED)
    given = timestep_arguments(model.class_name, model.latent_shape, type(scheduler), SHIFTED, 4)
    scheduler.set_timesteps(**given)
    assert contract.sampler.timesteps == tuple(float(t) for t in scheduler.timesteps)

"""Contracts take guidance layout, steps and timesteps of the model's own pipeline unless others are requested."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from math import prod
from pathlib import Path

import diffusers
import numpy as np
import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models import (
    load_model,
    load_random,
    make_contract,
    model_from_module,
    read_random_config,
    shipped_configs,
)
from dipgo_deploy.models.contracts import default_guidance, default_steps, timestep_arguments
from tests.models.families import FAMILIES, tiny


def in_pipeline(name: str, pipeline: object, folder: Path):
    """A tiny model as that of a pipeline folder."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return replace(tiny(name), folder=folder)


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_config_gives_guidance_and_steps(name: str) -> None:
    model, config = load_random(name, device="meta"), read_random_config(name)
    assert (default_guidance(model), default_steps(model)) == (config.guidance, config.steps)


@pytest.mark.parametrize(
    ("name", "pipeline", "guidance", "steps"),
    [
        ("sd", "StableDiffusionPipeline", "concat", 50),
        ("sdxl", "StableDiffusionXLPipeline", "concat", 50),
        ("sd", "LDMTextToImagePipeline", "none", 50),
        ("ddpm", "DDPMPipeline", "none", 1000),
        ("dit", "DiTPipeline", "concat", 50),
        ("pixart-alpha", "PixArtAlphaPipeline", "concat", 20),
        ("pixart-sigma", "PixArtSigmaPipeline", "concat", 20),
        ("sd3", "StableDiffusion3Pipeline", "concat", 28),
        ("flux", "FluxPipeline", "none", 28),
        ("wan", "WanPipeline", "none", 50),
        ("dit", "DiffusionPipeline", "none", 50),
        ("dit", "NoSuchPipeline", "concat", 50),
        ("sd", ["their.code", "Pipeline"], "concat", 50),
        ("sd", "UNet2DConditionModel", "concat", 50),
    ],
)
def test_a_pipeline_folder_takes_the_defaults_of_its_pipeline(name, pipeline, guidance, steps, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = in_pipeline(name, pipeline, tmp_path)
    assert (default_guidance(model), default_steps(model)) == (guidance, steps)


def test_image_to_image_of_a_latent_consistency_model_has_the_timesteps_of_its_strength(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = replace(
        in_pipeline("sd", "LatentConsistencyModelImg2ImgPipeline", tmp_path),
        scheduler_config={"_class_name": "LCMScheduler"},
    )
    scheduler = diffusers.LCMScheduler()
    scheduler.set_timesteps(4, strength=0.8)
    assert make_contract(model, steps=4).sampler.timesteps == tuple(scheduler.timesteps.tolist())
    other = in_pipeline("sd", "StableDiffusionImg2ImgPipeline", tmp_path)
    scheduler.set_timesteps(4)
    same = replace(other, scheduler_config={"_class_name": "LCMScheduler"})
    assert make_contract(same, steps=4).sampler.timesteps == tuple(scheduler.timesteps.tolist())


def test_libraries_are_silent_while_a_pipeline_class_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers imports a pipeline when its name is read, and without a package both libraries log a warning."""
    libraries = [pytest.importorskip(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    levels: list[list[int]] = []

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> type:
            levels.append([library.get_verbosity() for library in libraries])
            return type(name, (self.DiffusionPipeline,), {"__call__": lambda self, guidance_scale=7.5: None})

    fake = Lazy("diffusers")
    fake.DiffusionPipeline = type("DiffusionPipeline", (), {})
    model = in_pipeline("sd", "StableDiffusionPipeline", tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    assert default_guidance(model) == "concat"
    assert levels == [[library.ERROR for library in libraries]]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bare_denoiser_takes_the_defaults_of_its_class(name: str) -> None:
    expected = "none" if name in ("ddpm", "flux", "wan") else "concat"
    assert (default_guidance(tiny(name)), default_steps(tiny(name))) == (expected, 50)


def test_a_guidance_distilled_unet_has_no_unconditional_rows(tmp_path: Path) -> None:
    model = in_pipeline("sd", "LatentConsistencyModelPipeline", tmp_path)
    assert default_guidance(replace(model, config={**model.config, "time_cond_proj_dim": 8})) == "none"


def test_classes_without_a_null_class_leave_guidance_nothing_to_do() -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, num_class_embeds=5,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    model = model_from_module(unet, scheduler_config={"clip_sample": False})
    assert make_contract(model, sampler="ddim", steps=2).guidance == "none"
    with pytest.raises(UsageError, match="no label for an image without a class.*choose guidance 'none'"):
        make_contract(model, sampler="ddim", steps=2, guidance="concat")


def test_requested_values_win() -> None:
    model = replace(tiny("sd"), guidance="concat", steps=7)
    own, requested = make_contract(model), make_contract(model, steps=5, guidance="none")
    assert (own.guidance, own.sampler.steps) == ("concat", 7)
    assert (requested.guidance, requested.sampler.steps) == ("none", 5)


@pytest.mark.parametrize("name", ["digits-unet", "digits-dit"])
def test_defaults_of_the_shipped_models(name: str) -> None:
    contract = make_contract(load_model(name))
    assert (contract.guidance, contract.sampler.steps, contract.sampler.class_name) == ("none", 50, "DDIMScheduler")


def test_no_pipeline_is_imported_for_known_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_pipeline("sd", "StableDiffusionPipeline", tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert (
        default_guidance(replace(model, guidance="concat")) == "concat" and default_steps(replace(model, steps=9)) == 9
    )


def test_a_pipeline_gives_its_own_eta_to_the_sampler(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tcd = {"_class_name": "TCDScheduler"}
    model = replace(in_pipeline("sd", "StableDiffusionPipeline", tmp_path), scheduler_config=tcd)
    assert make_contract(model, steps=4).sampler.config_dict["eta"] == 0.0
    assert make_contract(model, steps=4, sampler_options={"eta": 0.2}).sampler.config_dict["eta"] == 0.2
    assert "eta" not in make_contract(replace(model, folder=None), steps=4).sampler.config_dict


@pytest.mark.parametrize(("name", "pipeline"), [("flux-schnell", "Flux"), ("flux-dev", "Flux"), ("wan2.1-1.3b", "Wan")])
def test_a_shipped_config_has_the_timesteps_of_its_pipeline(name: str, pipeline: str) -> None:
    pytest.importorskip("transformers")
    config, model = read_random_config(name), load_random(name, device="meta")
    scheduler = getattr(diffusers, config.scheduler["_class_name"]).from_config(config.scheduler)
    pipelines = sys.modules[getattr(diffusers, f"{pipeline}Pipeline").__module__]
    count = config.steps or 50
    if pipeline == "Flux":
        shift = pipelines.calculate_shift(
            prod(model.latent_shape[1:]) // 4, *(scheduler.config[key] for key in SHIFT_OPTIONS)
        )
        pipelines.retrieve_timesteps(scheduler, count, sigmas=np.linspace(1.0, 1 / count, count), mu=shift)
    else:
        scheduler.set_timesteps(count)
    assert make_contract(model).sampler.timesteps == tuple(scheduler.timesteps.tolist())


SHIFT_OPTIONS = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
SHIFTED = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64}


def test_flux_chooses_its_noise_levels_and_shifts_them_by_size():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    arguments = timestep_arguments(
        "FluxTransformer2DModel", (4, 12, 8), diffusers.FlowMatchEulerDiscreteScheduler, SHIFTED, 4
    )
    assert arguments == {"sigmas": [1.0, 0.75, 0.5, 0.25], "mu": pytest.approx(calculate_shift(24, 16, 64, 0.5, 1.15))}


def test_stable_diffusion_3_only_shifts_and_only_if_its_config_says_so():
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    name, scheduler = "SD3Transformer2DModel", diffusers.FlowMatchEulerDiscreteScheduler
    arguments = timestep_arguments(name, (4, 12, 8), scheduler, SHIFTED, 4)
    assert arguments == {"mu": pytest.approx(calculate_shift(24, 16, 64, 0.5, 1.16))}
    assert timestep_arguments(name, (4, 12, 8), scheduler, {}, 4) == {}


def test_other_pipelines_pass_only_the_number_of_steps():
    assert timestep_arguments("UNet2DConditionModel", (4, 8, 8), diffusers.DDIMScheduler, SHIFTED, 4) == {}
    assert timestep_arguments("FluxTransformer2DModel", (4, 8, 8), diffusers.DDIMScheduler, SHIFTED, 4) == {}


def test_a_contract_of_flux_has_the_timesteps_of_its_pipeline():
    model = replace(tiny("flux"), scheduler_config={"_class_name": "FlowMatchEulerDiscreteScheduler", **SHIFTED})
    contract = make_contract(model, sampler="flow-euler", steps=4)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SHIFTED)
    arguments = timestep_arguments(model.class_name, model.latent_shape, type(scheduler), SHIFTED, 4)
    scheduler.set_timesteps(**arguments)
    assert contract.sampler.timesteps == tuple(float(t) for t in scheduler.timesteps)

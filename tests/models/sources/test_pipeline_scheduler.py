"""A folder's scheduler and denoiser have the configs that diffusers' own pipeline of the folder has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models import LoadedModel, load_model, make_contract
from dipgo_deploy.models.schedulers import is_recorded_as, scheduler_options

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning:diffusers.*")

OLD_UNET = {"_diffusers_version": "0.6.0", "sample_size": 32}

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDIMScheduler", {}),
    ("DDIMScheduler", {"steps_offset": 0, "clip_sample": True}),
    ("PNDMScheduler", {"steps_offset": 0, "skip_prk_steps": False}),
    ("EulerDiscreteScheduler", {"steps_offset": 0, "timestep_spacing": "leading"}),
    ("LCMScheduler", {"original_inference_steps": 20}),
    ("TCDScheduler", {}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    ("KDPM2DiscreteScheduler", {}),
    ("DDIMParallelScheduler", {"clip_sample": False}),
    ("UnCLIPScheduler", {"clip_sample_range": 2.0}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
)


def write(path: Path, entries: dict[str, Any]) -> None:
    path.write_text(json.dumps(entries))


def with_scheduler(source: Path, folder: Path, class_name: str, config: dict[str, Any], **unet: Any) -> Path:
    """A copy of a pipeline folder with another scheduler, and entries of its U-Net's config changed."""
    shutil.copytree(source, folder)
    write(folder / "scheduler" / "scheduler_config.json", {"_class_name": class_name, **config})
    index = json.loads((folder / "model_index.json").read_text())
    write(folder / "model_index.json", {**index, "scheduler": ["diffusers", class_name]})
    write(folder / "unet" / "config.json", {**json.loads((folder / "unet" / "config.json").read_text()), **unet})
    return folder


def check_like_pipeline(model: LoadedModel, pipeline: Any) -> None:
    """The default contract of the model has the scheduler of the pipeline, and the model has its denoiser's config."""
    sampler, scheduler = make_contract(model, steps=6).sampler, pipeline.scheduler
    options = {name: scheduler.config[name] for name in scheduler_options(type(scheduler))}
    recorded = {name: sampler.config_dict.get(name, options[name]) for name in options}
    assert (sampler.class_name, recorded) == (type(scheduler).__name__, options)
    assert is_recorded_as(scheduler, sampler)
    scheduler.set_timesteps(6)
    assert sampler.timesteps == tuple(scheduler.timesteps.tolist())
    assert model.config["sample_size"] == pipeline.unet.config.sample_size


@pytest.mark.parametrize(("class_name", "config"), CASES)
def test_a_pipeline_folder_is_what_diffusers_makes_of_it(class_name, config, sd_pipeline, tmp_path):
    folder = with_scheduler(sd_pipeline, tmp_path / "model", class_name, config, **OLD_UNET)
    check_like_pipeline(load_model(folder, meta=True), diffusers.DiffusionPipeline.from_pretrained(folder))


def test_old_configs_are_mended(sd_pipeline, tmp_path):
    old = {"steps_offset": 0, "skip_prk_steps": False}
    folder = with_scheduler(sd_pipeline, tmp_path / "model", "PNDMScheduler", old, **OLD_UNET)
    index = json.loads((folder / "model_index.json").read_text())
    write(folder / "model_index.json", {**index, "_class_name": "StableDiffusionInpaintPipeline"})
    model = load_model(folder, meta=True)
    assert (model.scheduler_config["steps_offset"], model.scheduler_config["skip_prk_steps"]) == (1, True)
    assert model.latent_shape[1:] == (64, 64) and model.assumptions == ()


def test_a_pipeline_may_convert_its_scheduler_to_another_class(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(beta_end=0.01)).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    write(tmp_path / "model_index.json", {**index, "_class_name": "DDIMPipeline"})
    check_like_pipeline(load_model(tmp_path), diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert load_model(tmp_path).scheduler_config["_class_name"] == "DDIMScheduler"


def test_the_index_names_the_class(sd_pipeline, tmp_path):
    folder = with_scheduler(sd_pipeline, tmp_path / "model", "EulerDiscreteScheduler", {})
    write(folder / "scheduler" / "scheduler_config.json", {"_class_name": "PNDMScheduler", "steps_offset": 1})
    check_like_pipeline(load_model(folder, meta=True), diffusers.DiffusionPipeline.from_pretrained(folder))


def test_the_unet_folder_of_a_pipeline_takes_scheduler_and_defaults_of_the_pipeline(sd_pipeline, tmp_path):
    folder = with_scheduler(sd_pipeline, tmp_path / "model", "LCMScheduler", {"beta_end": 0.011})
    whole, alone = load_model(folder, meta=True), load_model(folder / "unet", meta=True)
    assert make_contract(alone) == make_contract(whole)
    assert whole.assumptions == () and "unet is the denoiser of the pipeline" in alone.assumptions[0]


@pytest.mark.parametrize("config", [{"beta_schedule": "no such schedule"}, {"trained_betas": "none"}])
def test_a_scheduler_that_refuses_its_config_stops_the_contract_but_not_another_sampler(config, sd_pipeline, tmp_path):
    model = load_model(with_scheduler(sd_pipeline, tmp_path / "model", "DDIMScheduler", config), meta=True)
    with pytest.raises(InputError, match="DDIMScheduler refuses this config .*: fix the model's scheduler_config.json"):
        make_contract(model)


@pytest.mark.parametrize("entry", [["diffusers", "NoSuchScheduler"], ["their.code", "TheirScheduler"]])
def test_a_scheduler_that_diffusers_lacks_is_named(entry, sd_pipeline, tmp_path):
    folder = with_scheduler(sd_pipeline, tmp_path / "model", "DDIMScheduler", {"beta_end": 0.011})
    index = json.loads((folder / "model_index.json").read_text())
    write(folder / "model_index.json", {**index, "scheduler": entry})
    model = load_model(folder, meta=True)
    with pytest.raises(InputError, match=f"'{entry[1]}' is not a diffusers scheduler"):
        make_contract(model)
    assert make_contract(model, sampler="ddim", steps=4).sampler.config_dict["beta_end"] == 0.011

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models import PRESETS, load_random, make_contract, read_random_config, sampler_spec, shipped_configs
from dipgo_deploy.models.contracts import default_guidance
from dipgo_deploy.models.presets import PipelineCall
from tests.models.families import FAMILIES, tiny

# Parameters in millions: counted on the modules that diffusers makes of the published configs.
PUBLISHED = {
    "ddpm-cifar10-32": 35.746,
    "ldm-celebahq-256": 274.056,
    "sd15": 859.521,
    "sd21": 865.911,
    "sdxl": 2567.464,
    "pixart-alpha-1024": 611.349,
    "pixart-sigma-1024": 610.856,
    "sd3-medium": 2028.328,
    "sd35-large": 8056.628,
    "flux-dev": 11901.408,
    "wan2.1-1.3b": 1418.997,
}


PIPELINES = {
    "sd15": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "pixart-alpha-1024": "PixArtAlphaPipeline",
    "pixart-sigma-1024": "PixArtSigmaPipeline",
    "sd3-medium": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
    "wan2.1-1.3b": "WanPipeline",
}


@pytest.mark.parametrize(("name", "pipeline"), PIPELINES.items())
def test_shipped_configs_have_guidance_and_text_of_their_pipelines(name: str, pipeline: str) -> None:
    model, config = load_random(name, device="meta"), read_random_config(name)
    called = replace(model, guidance=None, text_tokens=None, call=PipelineCall.of(pipeline))
    assert (default_guidance(called), called.tokens) == (config.guidance, config.text_tokens)


def config_of(name: str, folder: Path) -> Path:
    module = tiny(name).module
    module.save_config(folder)
    return folder / "config.json"


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_are_whole_and_take_no_memory_on_meta(name: str) -> None:
    config, model = read_random_config(name), load_random(name, device="meta")
    assert config.title and config.steps and config.guidance in ("none", "concat")
    assert {tensor.device.type for tensor in model.module.state_dict().values()} == {"meta"}
    taken = {**model.config, "_class_name": model.class_name}
    assert json.loads(json.dumps({key: taken[key] for key in config.denoiser})) == config.denoiser
    assert prod(model.latent_shape) > 0 and model.scheduler_config == config.scheduler
    if name in PUBLISHED:
        count = sum(parameter.numel() for parameter in model.module.parameters()) / 1e6
        assert count == pytest.approx(PUBLISHED[name], abs=1e-3)


def test_every_supported_class_ships_a_config() -> None:
    assert {read_random_config(name).denoiser["_class_name"] for name in shipped_configs()} == set(PRESETS)


def test_shipped_schedulers_are_those_of_the_papers() -> None:
    v_prediction = read_random_config("sd21").scheduler
    assert sampler_spec("ddim", 50, v_prediction).config_dict["prediction_type"] == "v_prediction"
    assert sampler_spec("pndm", 50, read_random_config("sd15").scheduler).calls == 51
    assert sampler_spec("flow-euler", 28, read_random_config("sd3-medium").scheduler).config_dict["shift"] == 3.0


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights_follow_config_seed_and_dtype(name: str, tmp_path: Path) -> None:
    path = config_of(name, tmp_path)
    one, same = (load_random(path, dtype="float16", seed=3) for _ in range(2))
    assert one.digest == same.digest != load_random(path, dtype="float16", seed=4).digest
    tensors = [*one.module.parameters(), *one.module.buffers()]
    kept = {*(one.module._keep_in_fp32_modules or ())}  # diffusers keeps some modules of Wan in float32
    cast = {tensor.dtype for key, tensor in one.module.state_dict().items() if not kept & {*key.split(".")}}
    assert cast == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
    assert torch.get_default_dtype() == torch.float32


def test_the_callers_generator_is_left_alone(tmp_path: Path) -> None:
    path = config_of("dit", tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_random(path)
    assert np.array_equal(torch.rand(3), expected)


def test_malformed_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no config 'sd16': give a config.json or one of ddpm"):
        load_random("sd16")
    with pytest.raises(UsageError, match="dtype 'int4' is unknown"):
        load_random("sd15", dtype="int4")
    path = tmp_path / "config.json"
    for text, match in (
        ('{"_class_name": "AutoencoderKL"}', "names no supported denoiser class"),
        ('{"denoiser": {"_class_name": "UNet2DModel"}, "weights": 1}', "unknown entry 'weights'"),
        ('{"denoiser": []}', "names no supported denoiser class"),
        ('{"_class_name": []}', "names no supported denoiser class"),
        ('{"_class_name": "UNet2DModel", "block_out_channels": [1]}', "UNet2DModel refuses this config"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=match):
            load_random(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("latent_shape", 5),
        ("latent_shape", [4, 8]),
        ("latent_shape", [4, 0, 8]),
        ("steps", "50"),
        ("steps", 0),
        ("text_tokens", 7.5),
        ("guidance", "strong"),
        ("scheduler", ["DDIMScheduler"]),
        ("title", 1),
    ],
)
def test_entries_of_a_wrong_type_are_refused(entry: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"denoiser": {"_class_name": "UNet2DModel"}, entry: value}))
    with pytest.raises(InputError, match=rf"own.json: {entry}.*, found .*: fix the file"):
        read_random_config(path)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("sd15", "pndm"),
        ("sd21", "ddim"),
        ("sdxl", "euler"),
        ("pixart-sigma-1024", "dpmpp-2m"),
        ("flux-dev", "flow-euler"),
        ("wan2.1-1.3b", "unipc"),
        ("ddpm-cifar10-32", "ddpm"),
    ],
)
def test_a_contract_takes_the_models_own_sampler(name: str, sampler: str) -> None:
    model = load_random(name, device="meta")
    contract = make_contract(model, steps=4)
    assert contract == make_contract(model, steps=4, sampler=sampler)
    assert contract.sampler.class_name == model.scheduler_config["_class_name"]

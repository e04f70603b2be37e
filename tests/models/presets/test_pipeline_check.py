"""Pipelines that a schedule cannot follow are refused from ``model_index.json`` alone."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models import load_model
from dipgo_deploy.models.presets import pipeline_check
from dipgo_deploy.models.presets.pipeline_check import check_pipeline, check_rows, present_parts

CONTROLNET = {
    "_class_name": "StableDiffusionControlNetPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "controlnet": ["diffusers", "ControlNetModel"],
    "image_encoder": [None, None],
}


def test_a_second_network_is_refused_before_weights_are_read(tmp_path: Path):
    (tmp_path / "model_index.json").write_text(json.dumps(CONTROLNET))
    message = (
        "ControlNetPipeline gives its denoiser the residuals of a ControlNet.*: use .*, or load a copy of the denois"
    )
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_empty_parts_do_not_count():
    parts = present_parts(CONTROLNET | {"controlnet": [None, None]})
    assert parts == {"unet"}
    check_pipeline("StableDiffusionControlNetPipeline", parts, {})


@pytest.mark.parametrize("name", sorted(pipeline_check._REASONS))
def test_a_class_that_reaches_into_its_denoiser_is_refused_and_exists(name: str):
    assert hasattr(diffusers, name)
    with pytest.raises(InputError, match=rf"^{name} .*: use a pipeline of another class around the same denoiser"):
        check_pipeline(name, {"unet"}, {})


def test_a_pipeline_of_another_library_is_not_refused_by_its_name():
    check_pipeline("MyOwnPipeline", {"unet"}, {})
    check_pipeline(["pipeline", "Mine"], {"unet"}, {})


def test_timesteps_of_single_tokens_are_refused():
    check_pipeline("WanPipeline", {"transformer"}, {"expand_timesteps": True})
    with pytest.raises(InputError, match="WanImageToVideoPipeline gives every token a timestep of its own"):
        check_pipeline("WanImageToVideoPipeline", {"transformer"}, {"expand_timesteps": True})


@pytest.mark.parametrize("argument", ["image_guidance_scale", "pag_scale", "sld_guidance_scale"])
def test_further_rows_are_refused_unless_a_layout_turns_them_off(argument: str):
    with pytest.raises(UsageError, match=f"makes three rows an image for its {argument}.*choose guidance 'none'"):
        check_rows("SomePipeline", {argument: 1.5}, None)
    check_rows("SomePipeline", {argument: 1.5}, "none")
    check_rows("SomePipeline", {argument: 0.0}, None)

"""Facts of pipeline classes that neither config nor signature gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dipgo_deploy.models.presets import PipelineCall, read_pipeline_call
from tests.models.families import tiny


@pytest.mark.parametrize(("pipeline", "has_text"), [("AudioLDMPipeline", False), ("StableDiffusionPipeline", True)])
def test_a_pipeline_whose_text_is_a_class_vector_alone_gives_no_tokens(pipeline: str, has_text: bool) -> None:
    model = replace(tiny("sd"), call=PipelineCall.of(pipeline))
    assert ("encoder_hidden_states" in model.example_inputs(1)) == has_text


@pytest.mark.parametrize(
    ("config", "tokens"), [({"image_size": 224, "patch_size": 14}, 257), ({"image_size": 8}, None), (None, None)]
)
def test_the_tokens_of_an_image_encoder_are_those_of_its_config(tmp_path: Path, config, tokens) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanImageToVideoPipeline"}))
    if config is not None:
        (tmp_path / "image_encoder").mkdir()
        (tmp_path / "image_encoder" / "config.json").write_text(json.dumps(config))
    assert read_pipeline_call(tmp_path).image_tokens == tokens

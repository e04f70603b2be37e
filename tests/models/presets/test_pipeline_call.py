"""Facts of pipeline classes that neither config nor signature gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dipgo_deploy.models.presets import PipelineCall
from tests.models.families import tiny


@pytest.mark.parametrize(("pipeline", "has_text"), [("AudioLDMPipeline", False), ("StableDiffusionPipeline", True)])
def test_a_pipeline_whose_text_is_a_class_vector_alone_gives_no_tokens(pipeline: str, has_text: bool) -> None:
    model = replace(tiny("sd"), call=PipelineCall.of(pipeline))
    assert ("encoder_hidden_states" in model.example_inputs(1)) == has_text

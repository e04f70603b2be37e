"""Images of prompts: each has its own generator, whatever the batch; odd options are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.runtime.dropin import PromptOptions, draw_prompts, load_pipeline
from dipgo_deploy.runtime.dropin.pipeline import call_arguments
from tests.runtime.dropin.pipelines import SIDE, build, drawn, make_bundle

OPTIONS = PromptOptions(("a cat", "dogs"), negative_prompt="rain", seed=5, guidance_scale=4.0)


def test_images_do_not_depend_on_the_batch(sd_bundle: Path):
    three = replace(OPTIONS, count=3)
    whole, parts = draw_prompts(sd_bundle, three), draw_prompts(sd_bundle, replace(three, batch=4))
    assert whole.images.shape == (6, 3, SIDE, SIDE) and np.abs(whole.images).max() <= 1
    assert np.abs(whole.images - parts.images).max() <= 1e-4


def test_an_image_is_the_pipelines_own(sd_bundle: Path):
    found = draw_prompts(sd_bundle, OPTIONS).images[0]
    pipeline = load_pipeline(sd_bundle)
    arguments = call_arguments(pipeline, pipeline.unet.bundle.manifest.contract)
    own = drawn(pipeline, {**arguments, "prompt": "a cat", "negative_prompt": "rain", "guidance_scale": 4.0})
    assert np.abs(found - (own[0].transpose(2, 0, 1) * 2 - 1)).max() <= 1e-4


def test_the_time_is_split(sd_bundle: Path):
    times = draw_prompts(sd_bundle, OPTIONS).times.as_dict()
    assert list(times) == ["text_encoder", "denoiser", "vae", "rest", "total"]
    assert min(times.values()) > 0 and sum(times.values()) == pytest.approx(2 * times["total"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompts": ()}, "1 images of 0 prompts make no sense"),
        ({"count": 0}, "0 images of 2 prompts make no sense"),
        ({"batch": 0}, "make no sense: ask for 1 or more"),
    ],
)
def test_odd_options_are_refused(sd_bundle: Path, changed, says):
    with pytest.raises(UsageError, match=says):
        draw_prompts(sd_bundle, replace(OPTIONS, **changed))


def test_a_pipeline_without_prompts_is_refused(tmp_path: Path):
    build("dit", tmp_path / "pipeline")
    bundle = make_bundle("dit", tmp_path / "pipeline", tmp_path / "bundle")
    with pytest.raises(UsageError, match="DiTPipeline takes no prompt: give classes, or leave it out"):
        draw_prompts(bundle, OPTIONS)


def test_a_guidance_scale_without_guidance_is_refused(sd_pipeline: Path, tmp_path: Path):
    bundle = make_bundle("sd", sd_pipeline, tmp_path / "bundle", sampler="ddim", guidance="none")
    with pytest.raises(UsageError, match="a guidance scale of 4 needs a bundle with guidance"):
        draw_prompts(bundle, OPTIONS)
    plain = replace(OPTIONS, guidance_scale=None, negative_prompt=None)
    assert draw_prompts(bundle, plain).images.shape == (2, 3, SIDE, SIDE)

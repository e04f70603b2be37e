"""Images of prompts do not depend on the batch, and options that make no sense are refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.errors import MissingError, UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.pipeline import PromptOptions, draw_prompts, drawing, load_pipeline
from dipgo_deploy.pipeline.load import call_arguments
from dipgo_deploy.pipeline.part_times import time_parts
from tests.pipeline.pipelines import SIDE, build, drawn, make_bundle
from tests.runtime import fake_tensorrt as fake

OPTIONS = PromptOptions(("a cat", "dogs"), negative_prompt="rain", seed=5, guidance_scale=4.0)


def test_images_do_not_depend_on_the_batch(sd_bundle: Path):
    three = replace(OPTIONS, count=3)
    whole, parts = draw_prompts(sd_bundle, three), draw_prompts(sd_bundle, replace(three, batch=4))
    assert whole.images.shape == (6, 3, SIDE, SIDE) and np.abs(whole.images).max() <= 1
    assert np.abs(whole.images - parts.images).max() <= 1e-4


def test_an_image_is_the_pipelines_own(sd_bundle: Path):
    image = draw_prompts(sd_bundle, OPTIONS).images[0]
    pipeline = load_pipeline(sd_bundle)
    arguments = call_arguments(pipeline, pipeline.unet.bundle.contract)
    own = drawn(pipeline, {**arguments, "prompt": "a cat", "negative_prompt": "rain", "guidance_scale": 4.0})
    assert np.abs(image - (own[0].transpose(2, 0, 1) * 2 - 1)).max() <= 1e-4


def test_the_time_is_split(sd_bundle: Path):
    times = draw_prompts(sd_bundle, OPTIONS).times.as_dict()
    assert list(times) == ["text_encoder", "denoiser", "vae", "rest", "total"]
    assert min(times.values()) > 0 and sum(times.values()) == pytest.approx(2 * times["total"])


def test_engines_draw_the_same_images(sd_bundle: Path, tmp_path: Path, engine_cache, monkeypatch):
    """The engines take only batches of 2. They are loaded before the clock starts."""
    folder = Path(shutil.copytree(sd_bundle, tmp_path / "bundle"))
    bundle, loads_before_clock = load_bundle(folder), []
    gpu = fake.FakeGpu(monkeypatch, bundle.denoiser)
    fake.write_engines(bundle, batch=BatchRange(2, 2, 2), trusted=False)

    def clocked(pipeline):
        loads_before_clock.append(len(gpu.loads))
        return time_parts(pipeline)

    monkeypatch.setattr(drawing, "time_parts", clocked)
    # Stands in for the components on the GPU, which the fake does not have.
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "to", lambda pipeline, *_, **__: pipeline)
    monkeypatch.setattr(drawing, "check_device", lambda device: None)
    three = replace(OPTIONS, prompts=("a cat", "dogs", "birds"), batch=2)
    on_engines = replace(three, run=RunOptions("rtx", gpu_memory=2**30, trust_engines=True))
    images = draw_prompts(folder, on_engines).images
    assert loads_before_clock == [len(bundle.program.graphs)] == [len(gpu.loads)]
    assert len(images) == 3 and np.abs(images - draw_prompts(folder, three).images).max() <= 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU: nothing to refuse")
def test_a_missing_gpu_is_one_refusal(sd_bundle: Path):
    with pytest.raises(MissingError, match="device cuda was requested, but PyTorch finds no CUDA GPU here"):
        draw_prompts(sd_bundle, replace(OPTIONS, run=RunOptions(device="cuda")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": ()}, "prompts must be at least 1, got 0"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"guidance_scale": 1.0}, "guidance_scale must be above 1, got 1: the bundle is made for guidance"),
        ({"guidance_scale": math.inf}, "guidance_scale must be finite, got inf"),
    ],
)
def test_options_that_make_no_sense_are_refused(sd_bundle: Path, changed, message):
    with pytest.raises(UsageError, match=message):
        draw_prompts(sd_bundle, replace(OPTIONS, **changed))


def test_a_pipeline_without_prompts_is_refused(tmp_path: Path):
    build("dit", tmp_path / "pipeline")
    bundle = make_bundle("dit", tmp_path / "pipeline", tmp_path / "bundle")
    with pytest.raises(UsageError, match="DiTPipeline takes no prompt: pass classes, or leave it out"):
        draw_prompts(bundle, OPTIONS)


def test_a_guidance_scale_without_guidance_is_refused(sd_pipeline: Path, tmp_path: Path):
    bundle = make_bundle("sd", sd_pipeline, tmp_path / "bundle", sampler="ddim", guidance="none")
    with pytest.raises(UsageError, match="guidance_scale 4 needs a bundle with guidance"):
        draw_prompts(bundle, OPTIONS)
    plain = replace(OPTIONS, guidance_scale=None, negative_prompt=None)
    assert draw_prompts(bundle, plain).images.shape == (2, 3, SIDE, SIDE)

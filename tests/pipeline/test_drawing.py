"""Images of prompts: each has its own generator, whatever the batch; odd options are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import MissingError, UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.pipeline import PromptOptions, draw_prompts, drawing, load_pipeline
from dipgo_deploy.pipeline.drawing import timed_parts
from dipgo_deploy.pipeline.load import call_arguments
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from tests.pipeline.pipelines import SIDE, build, drawn, make_bundle
from tests.runtime import fake_tensorrt as fake

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


def test_engines_draw_the_same_images(sd_bundle: Path, monkeypatch):
    """A library that computes on the CPU stands in for TensorRT; engines are opened for one batch, before the clock."""
    opened_for, backends, loaded = [], [], []

    def engine_backend(given, target, batch, **options):
        files = {name: given.folder / path for name, path in given.manifest.graphs.items()}
        opened_for.append((target, batch, options))
        backends.append(TensorRTBackend(fake.Library(given.denoiser), files, device="cpu"))
        return given.program, backends[-1]

    def clocked(pipeline):
        loaded.append(len(backends[-1].loaded))
        return timed_parts(pipeline)

    monkeypatch.setattr(opened, "engine_backend", engine_backend)
    monkeypatch.setattr(drawing, "timed_parts", clocked)
    three = replace(OPTIONS, prompts=("a cat", "dogs", "birds"), batch=2)
    found = draw_prompts(sd_bundle, replace(three, run=RunOptions("rtx", gpu_memory=2**30, trust_engines=True)))
    assert opened_for == [("rtx", 2, {"gpu_memory": 2**30, "trust": True})]
    assert loaded == [len(load_bundle(sd_bundle).program.graphs)]
    monkeypatch.undo()
    assert len(found.images) == 3 and np.abs(found.images - draw_prompts(sd_bundle, three).images).max() <= 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU: nothing to refuse")
def test_a_missing_gpu_is_one_refusal(sd_bundle: Path):
    with pytest.raises(MissingError, match="device cuda is wanted, but PyTorch finds no CUDA GPU here"):
        draw_prompts(sd_bundle, replace(OPTIONS, run=RunOptions(device="cuda")))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompts": ()}, "1 images of 0 prompts make no sense"),
        ({"count": 0}, "0 images of 2 prompts make no sense"),
        ({"batch": 0}, "make no sense: ask for 1 or more"),
        ({"guidance_scale": 1.0}, "a guidance scale of 1 turns guidance off, and the bundle is made for guidance"),
        ({"guidance_scale": math.inf}, "a guidance scale of inf is not finite: give a number"),
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

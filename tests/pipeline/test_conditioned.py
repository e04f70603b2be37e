"""Bundles of denoisers with more inputs than latent, time and text, in their own pipelines, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import load_model, make_contract, model_from_pipeline, scheduler_from_spec
from dipgo_deploy.models.contracts import default_guidance
from dipgo_deploy.pipeline import DeployedDenoiser, call_arguments
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.verify import VerifyOptions, verify_bundle
from tests.models.conditioned import CONDITIONED, build
from tests.pipeline.scheduled import scheduled

ALWAYS = ("inpaint",)
PARAMETERS = [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in CONDITIONED]
STEPS = 4

DETERMINISTIC = {"if-super-resolution": "dpmpp-2m", "kandinsky": "ddim", "upscale": "ddim"}
"""Samplers in place of those that draw noise."""


def drawn(pipeline, arguments):
    """The result of one call, float64."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    output = pipeline(**arguments, output_type="np", generator=generator)
    return np.asarray(output.prediction if hasattr(output, "prediction") else output.images, np.float64)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_deployed_pipeline_makes_the_images_of_pytorch_under_the_schedule(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pipeline = build(name, tmp_path / "tokenizer")
    pipeline.save_pretrained(tmp_path / "pipeline")
    arguments = CONDITIONED[name].arguments() | {"num_inference_steps": STEPS}
    called = model_from_pipeline(pipeline, **arguments)
    model = load_model(tmp_path / "pipeline").with_latent_shape(called.latent_shape)
    graph = trace(called).blocks
    contract = make_contract(called, sampler=DETERMINISTIC.get(name), steps=STEPS)
    assert contract.guidance == default_guidance(model)
    schedule = random_schedule(graph, contract, "output", np.random.default_rng(2), 0.5)
    bundle = load_bundle(export(called, schedule, tmp_path / "bundle"))
    assert verify_bundle(bundle, VerifyOptions(images=2)).passed
    pipeline.scheduler = scheduler_from_spec(contract.sampler)
    arguments |= {key: value for key, value in call_arguments(pipeline, contract).items() if key not in arguments}
    component = called.component
    full = drawn(pipeline, arguments)
    with scheduled(getattr(pipeline, component), bundle.schedule):
        expected = drawn(pipeline, arguments)
    setattr(pipeline, component, DeployedDenoiser.from_bundle(bundle))
    images = drawn(pipeline, arguments)
    assert np.abs(images - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max())
    assert np.abs(full - expected).max() > 1e-4, "the schedule changes nothing, so this test shows nothing"

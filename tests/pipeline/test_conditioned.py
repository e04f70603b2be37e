"""Bundles of denoisers with more inputs than latent, time and text, in their own pipelines, against PyTorch."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import load_model, make_contract, model_from_pipeline, scheduler_from_spec
from dipgo_deploy.models.contracts import default_guidance
from dipgo_deploy.pipeline import PromptOptions, call_arguments, draw_prompts, load_pipeline
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.verify import VerifyOptions, verify_bundle
from tests.cli.refusal import refused
from tests.models.conditioned import CONDITIONED, build
from tests.pipeline.scheduled import scheduled

ALWAYS = ("inpaint",)
PARAMETERS = [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in CONDITIONED]
STEPS = 4

SAMPLERS = {"if-super-resolution": "dpmpp-2m", "kandinsky": "ddim"}
"""Samplers in place of those that read a learned variance."""

CALLS = {"wan-image": 2}
"""Calls of the denoiser in a step."""

NEED_IMAGES = {"inpaint": "image and mask_image", "upscale": "image"}


def drawn(pipeline, arguments):
    """The result of one call, float64."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    output = pipeline(**{"output_type": "np", **arguments}, generator=generator)
    names = ("prediction", "frames", "images")
    return np.asarray(next(getattr(output, name) for name in names if hasattr(output, name)), np.float64)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_deployed_pipeline_makes_the_images_of_pytorch_under_the_schedule(name: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("transformers")
    made = build(name, tmp_path / "tokenizer")
    made.save_pretrained(tmp_path / "pipeline")
    absent = {part: None for part, value in made.components.items() if value is None}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipeline", **absent)
    arguments = CONDITIONED[name].arguments() | {"num_inference_steps": STEPS}
    called = model_from_pipeline(pipeline, **arguments)
    graph = trace(called).blocks
    contract = make_contract(called, sampler=SAMPLERS.get(name), steps=STEPS)
    assert contract.guidance == default_guidance(load_model(tmp_path / "pipeline"))
    schedule = random_schedule(graph, contract, "output", np.random.default_rng(2), 0.5)
    bundle = load_bundle(export(called, schedule, tmp_path / "bundle"))
    assert verify_bundle(bundle, VerifyOptions(images=2)).passed
    pipeline.scheduler = scheduler_from_spec(contract.sampler)
    arguments |= {key: value for key, value in call_arguments(pipeline, contract).items() if key not in arguments}
    full = drawn(pipeline, arguments)
    with scheduled(called.module, bundle.schedule, CALLS.get(name, 1)):
        expected = drawn(pipeline, arguments)
    images = drawn(load_pipeline(bundle.folder, **absent), arguments)
    assert np.abs(images - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max())
    assert np.abs(full - expected).max() > 1e-4, "the schedule changes nothing, so this test shows nothing"
    _check_prompts(name, bundle.folder, capsys)


def _check_prompts(name: str, bundle: Path, capsys) -> None:
    """A prompt alone draws with a latent consistency model. Pipelines that also need an image say so."""
    if name in NEED_IMAGES:
        with pytest.raises(UsageError, match=f"Pipeline also needs {NEED_IMAGES[name]}, a prompt alone draws nothing"):
            draw_prompts(bundle, PromptOptions(("a cat",)))
    if name == "super-resolution":
        capsys.readouterr()
        generate = ["generate", bundle, "--out", bundle.parent / "grid.png"]
        refused(generate, "also looks at extra_channels, an image of yours", capsys, code=2)
    if name == "lcm":
        assert np.isfinite(draw_prompts(bundle, PromptOptions(("a cat",), guidance_scale=4.0)).images).all()

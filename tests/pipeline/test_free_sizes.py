"""One bundle serves latents of any size within its range: through pipelines, sessions, verify and generate."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import load_model, make_contract, scheduler_from_spec, with_sizes
from dipgo_deploy.pipeline import RefusedCall, call_arguments, load_pipeline
from dipgo_deploy.runtime.generate import GenerateOptions, generate
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.trt.job import check_tokens, profile_of
from dipgo_deploy.verify import VerifyOptions, verify_bundle
from tests.models.families import tiny
from tests.pipeline.pipelines import FAMILIES, TOKENS, build, drawn
from tests.pipeline.scheduled import scheduled

RANGE = SizeRange(8, 8, 16)
SIZES = ((8, 8), (12, 16), (16, 8))


def free_bundle(name: str, pipeline: Path, out: Path) -> Path:
    """The bundle of a saved pipeline for any size in RANGE, under a random schedule."""
    family = FAMILIES[name]
    model = replace(load_model(pipeline), latent_shape=tiny(family.denoiser).latent_shape, text_tokens=TOKENS)
    model = with_sizes(model, RANGE, RANGE)
    contract = make_contract(model, sampler=family.sampler, steps=4, guidance=family.guidance)
    schedule = random_schedule(trace(model).blocks, contract, "output", np.random.default_rng(2), 0.55)
    return export(model, schedule, out, ExportOptions("subnets"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """``made(name)``: a pipeline, and the folder of its bundle for sizes in RANGE."""

    @cache
    def make(name: str) -> tuple[Any, Path]:
        home = tmp_path_factory.mktemp(name)
        return build(name, home / "pipeline"), free_bundle(name, home / "pipeline", home / "bundle")

    return make


@pytest.fixture(scope="module")
def free_unet(made) -> Path:
    return made("sdxl")[1]


@pytest.mark.parametrize(
    "name", ["sdxl", pytest.param("sd3", marks=pytest.mark.slow), pytest.param("wan", marks=pytest.mark.slow)]
)
def test_a_pipeline_draws_every_size_as_pytorch_does(name: str, made) -> None:
    pipeline, folder = made(name)
    bundle = load_bundle(folder)
    pipeline.scheduler = scheduler_from_spec(bundle.contract.sampler)
    module = getattr(pipeline, bundle.manifest.denoiser)
    deployed = load_pipeline(folder)
    for size in SIZES:
        sizes = dict(zip(("height", "width"), size, strict=True))
        arguments = {**FAMILIES[name].arguments(), **call_arguments(pipeline, bundle.contract, sizes)}
        with scheduled(module, bundle.schedule, FAMILIES[name].calls_per_step):
            expected = drawn(pipeline, arguments)
        assert np.abs(drawn(deployed, arguments) - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max()), size
    with pytest.raises(RefusedCall, match=r"8 to 16 in steps of .* got \(.*28, 8\): set height and width"):
        drawn(deployed, {**FAMILIES[name].arguments(), **call_arguments(pipeline, bundle.contract, {"height": 28})})


def test_verify_and_generate_take_a_size(free_unet: Path) -> None:
    bundle = load_bundle(free_unet)
    report = verify_bundle(bundle, VerifyOptions(images=2, sizes={"height": 12, "width": 16}))
    assert report.passed, report.failure
    assert generate(bundle, GenerateOptions(count=2, sizes={"height": 16})).shape == (2, 4, 16, 8)
    for sizes in ({"height": 13}, {"width": 28}):
        with pytest.raises(UsageError, match=r"is \d+, but the contract takes 8 to 16 in steps of 2"):
            generate(bundle, GenerateOptions(sizes=sizes))


def test_memory_is_counted_at_the_largest_size_and_engines_get_a_profile(free_unet: Path) -> None:
    bundle = load_bundle(free_unet)
    contract = bundle.contract
    usual, largest = contract.sizes(2), contract.largest_sizes(2)
    assert (largest["height"], largest["width"], largest["tokens"]) == (16, 16, 1024)
    noise = next(slot for slot in bundle.program.slots if slot.shape[0] == "batch")
    assert noise.nbytes(largest) == 4 * noise.nbytes(usual)
    spec = bundle.blocks.inputs[0]
    profile = profile_of(contract, contract.batch, check_tokens(contract, None), spec)
    assert (profile.min[2:], profile.opt[2:], profile.max[2:]) == ((8, 8), (8, 8), (16, 16))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dit", "its table of positions is made for one size"),
        ("pixart-sigma", "its table of positions is made for one size"),
        ("flux", "its packed tokens do not tell height from width"),
    ],
)
def test_a_class_of_one_size_is_refused_at_once(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"{reason}: choose one size, and make a bundle for each size"):
        with_sizes(tiny(name), RANGE, RANGE)
    one = SizeRange(8, 8, 8)
    assert with_sizes(tiny(name), one, one).latent_shape == tiny(name).latent_shape


def test_what_a_model_cannot_serve_is_refused() -> None:
    with pytest.raises(UsageError, match="this UNet2DConditionModel takes height 4 to 4096 in steps of 2, got 3 to 9"):
        with_sizes(tiny("sd"), SizeRange(3, 6, 9), RANGE)
    model = with_sizes(tiny("sd3"), RANGE, RANGE)
    shifted = replace(model, scheduler_config={**model.scheduler_config, "use_dynamic_shifting": True})
    with pytest.raises(UsageError, match=r"shifts its timesteps by the image's size .*: choose one size"):
        make_contract(shifted, steps=4)
    with pytest.raises(UsageError, match="this SD3Transformer2DModel takes height 8 to 16 in steps of 4, got 8 to 64"):
        with_sizes(tiny("sd3"), SizeRange(8, 8, 64), RANGE)

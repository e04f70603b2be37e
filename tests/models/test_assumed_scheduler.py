"""A model without a scheduler gets one of its family, and says so."""

from __future__ import annotations

import json

import pytest

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models import load_model, make_contract, read_random_config
from dipgo_deploy.models.assumed_scheduler import assumed_scheduler
from dipgo_deploy.models.sources.module import model_from_module
from tests.models.families import tiny


@pytest.mark.parametrize(
    ("class_name", "config", "scheduler", "like"),
    [
        ("FluxTransformer2DModel", {"guidance_embeds": True}, "FlowMatchEulerDiscreteScheduler", "flux-dev"),
        ("FluxTransformer2DModel", {"guidance_embeds": False}, "FlowMatchEulerDiscreteScheduler", "flux-schnell"),
        ("SD3Transformer2DModel", {}, "FlowMatchEulerDiscreteScheduler", "sd3-medium"),
        ("WanTransformer3DModel", {}, "UniPCMultistepScheduler", "wan2.1-1.3b"),
        ("UNet2DConditionModel", {}, "DDIMScheduler", "sd15"),
        ("UNet2DConditionModel", {"cross_attention_dim": 1024, "sample_size": 96}, "DDIMScheduler", "sd21"),
        ("UNet2DConditionModel", {"addition_embed_type": "text_time"}, "DDIMScheduler", "sdxl"),
        ("DiTTransformer2DModel", {}, "DDIMScheduler", "dit-xl-2-256"),
        ("PixArtTransformer2DModel", {}, "DDIMScheduler", "pixart-alpha-512"),
    ],
)
def test_the_family_gives_the_scheduler(class_name, config, scheduler, like):
    found, sentence = assumed_scheduler(class_name, config, {})
    assert found == {**read_random_config(like).scheduler, "_class_name": scheduler}
    assert "no scheduler was found" in sentence and "--sampler and --sampler-option change it" in sentence


def test_an_unknown_class_gets_ddim_with_the_options_that_are_known():
    found, sentence = assumed_scheduler("Theirs", {}, {"clip_sample": False})
    assert found == {"_class_name": "DDIMScheduler", "clip_sample": False} and "diffusers' defaults" in sentence


@pytest.mark.parametrize(("name", "calls"), [("flux", 4), ("sd3", 4), ("wan", 4), ("sd", 4)])
def test_a_bare_folder_runs_in_its_family_and_says_so(name, calls, tmp_path):
    module = tiny(name).module
    (tmp_path / "config.json").write_text(json.dumps({**module.config, "_class_name": type(module).__name__}))
    model = load_model(tmp_path, meta=True)
    contract = make_contract(model, steps=4)
    is_flow = name != "sd"
    assert len(model.assumptions) == 1 and contract.sampler.calls == calls
    assert (contract.sampler.timesteps[0] >= 999) == is_flow
    if is_flow:
        with pytest.raises(UsageError, match="is configured for noise-schedule models"):
            make_contract(model, sampler="ddim")


def test_a_scheduler_that_is_named_is_not_assumed():
    assert model_from_module(tiny("sd").module, scheduler_config={"_class_name": "DDIMScheduler"}).assumptions == ()
    assert len(model_from_module(tiny("sd").module).assumptions) == 1

"""Methods of the diffusers class that is replaced: each works, is ignored with a warning, or refuses."""

from __future__ import annotations

import copy
import pickle
import warnings
from inspect import getattr_static
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models import PRESETS
from dipgo_deploy.pipeline import DeployedDenoiser, load_pipeline
from dipgo_deploy.pipeline.denoiser import _class_for
from tests.pipeline.pipelines import SIDE, drawn

CALL = {"prompt": "a cat", "num_inference_steps": 6, "guidance_scale": 4.0, "height": SIDE, "width": SIDE}
LATENT = {**CALL, "output_type": "latent"}


@pytest.fixture
def pipeline(sd_bundle: Path):
    return load_pipeline(sd_bundle)


@pytest.mark.parametrize("model_class", PRESETS)
def test_every_public_method_of_the_class_is_there_or_refuses(model_class: str):
    """Whatever a user calls, no raw AttributeError comes out, also for classes that change in later releases."""
    kind = getattr(diffusers, model_class)
    methods = [n for n in dir(kind) if not n.startswith("_") and callable(getattr_static(kind, n, None))]
    deployed = _class_for(model_class)
    assert [name for name in methods if not hasattr(deployed, name)] == []


REFUSED = {
    "FreeU": (lambda p: p.enable_freeu(0.9, 0.2, 1.2, 1.4), "enable_freeu cannot change .* export it again"),
    "fused projections": (lambda p: p.fuse_qkv_projections(), "fuse_qkv_projections cannot change"),
    "a LoRA": (
        lambda p: p.load_lora_weights({"unet.conv_in.lora_A.weight": torch.zeros(2, 4)}),
        "load_lora_adapter cannot change .* fuse it before tracing, with with_loras",
    ),
    "adapters": (lambda p: p.unet.set_adapters(["one"]), "set_adapters cannot change"),
    "reading processors": (lambda p: p.unet.attn_processors, "a deployed UNet2DConditionModel has no attn_processors"),
    "processors": (lambda p: p.unet.set_attn_processor(None), "set_attn_processor cannot change"),
    "perturbed attention": (
        lambda p: diffusers.AutoPipelineForText2Image.from_pipe(p, enable_pag=True)(**LATENT), "no attn_processors",
    ),
    "an IP adapter": (lambda p: p.unet._load_ip_adapter_weights([]), "use the PyTorch model .* for IP adapters"),
    "a layer": (lambda p: p.unet.up_blocks[0], "has no up_blocks, because graphs stand for its layers"),
    "a cache": (lambda p: p.unet.enable_cache(None), "schedule of the bundle reuses features already"),
    "weights": (lambda p: p.unet.load_state_dict({}), "load_state_dict cannot change"),
    "a file": (lambda p: type(p.unet).from_single_file("x"), "from_single_file cannot change .*: use from_bundle"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_values_is_refused_in_one_line(pipeline, name: str):
    act, says = REFUSED[name]
    with pytest.raises(UsageError, match=says) as refusal:
        act(pipeline)
    assert "\n" not in str(refusal.value)


IGNORED = {
    "slicing": lambda p: p.enable_attention_slicing(),
    "chunking": lambda p: p.unet.enable_forward_chunking(),
    "checkpointing": lambda p: p.unet.enable_gradient_checkpointing(),
    "xformers": lambda p: p.unet.enable_xformers_memory_efficient_attention(),
    "a backend": lambda p: p.unet.set_attention_backend("native"),
    "casting": lambda p: p.unet.enable_layerwise_casting(),
    "compile": lambda p: p.unet.compile(),
}


@pytest.mark.parametrize("name", IGNORED)
def test_options_of_memory_and_speed_have_no_effect_and_that_is_said(pipeline, name: str):
    with pytest.warns(UserWarning, match="has no effect on a deployed UNet2DConditionModel"):
        IGNORED[name](pipeline)


def test_what_is_turned_off_was_not_on_and_the_rest_of_the_pipeline_works(pipeline):
    expected = drawn(pipeline, LATENT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipeline.disable_freeu()
        pipeline.unload_lora_weights()
        pipeline.unet.set_default_attn_processor()
        pipeline.vae.enable_slicing()
        pipeline.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(drawn(pipeline, LATENT), expected)
    assert not hasattr(pipeline.unet, "down_blocks") and getattr(pipeline.unet, "encoder_hid_proj", None) is None


def test_torch_compile_copies_and_pickles_of_it_draw_the_same(pipeline):
    expected, unet = drawn(pipeline, LATENT), pipeline.unet
    for other in (torch.compile(unet), copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        pipeline.unet = other
        assert np.array_equal(drawn(pipeline, LATENT), expected)


def test_a_module_with_behaviour_of_its_own_cannot_lose_it(sd_bundle: Path):
    bundle = load_bundle(sd_bundle)
    vars(bundle.manifest)["behaviour"] = "up_blocks.0.s1"
    with pytest.raises(UsageError, match="disable_freeu cannot change"):
        DeployedDenoiser.from_bundle(bundle).disable_freeu()


TEXT, SAMPLE = torch.zeros(2, 7, 12), torch.zeros(2, 4, 8, 8)
WRONG = {
    "an unknown argument": ((SAMPLE, 831, TEXT), {"strength": 1}, "unexpected keyword argument 'strength'"),
    "too many arguments": ((SAMPLE, 831, TEXT, *[None] * 20), {}, "too many positional arguments"),
    "no timestep": ((SAMPLE,), {}, "missing a required argument: 'timestep'"),
    "a list": ((SAMPLE, 831, [1, 2]), {}, "encoder_hidden_states must be a torch.Tensor, got list"),
    "an array": ((SAMPLE.numpy(), 831, TEXT), {}, "sample must be a torch.Tensor, got ndarray"),
    "integers": ((SAMPLE.long(), 831, TEXT), {}, "sample must be floating, got int64"),
    "no values": ((SAMPLE, 831, TEXT.to("meta")), {}, "encoder_hidden_states is on the device meta"),
    "a word": ((SAMPLE, "831", TEXT), {}, "timestep must be a number or a torch.Tensor, got str"),
    "an empty timestep": ((SAMPLE, torch.zeros(0), TEXT), {}, "timestep has no value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_the_class_does_not_take_either_are_type_errors(pipeline, name: str):
    args, kwargs, says = WRONG[name]
    with pytest.raises(TypeError, match=says):
        pipeline.unet(*args, **kwargs)

"""The inputs that a config asks for are those of a real call of its pipeline. Calls that no schedule holds are refused.

The real call is the oracle: the pipeline of plain diffusers runs, and notes what it gives its denoiser.
"""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models import load_model, make_contract, model_from_module, model_from_pipeline
from dipgo_deploy.models.contracts import default_guidance
from dipgo_deploy.models.presets.pipeline_call import PipelineCall
from dipgo_deploy.models.presets.unet import guidance_embedding
from tests.models.conditioned import CONDITIONED, TOKENS, build, pix2pix, unet

STEPS = 4

MASK = [1] * 3 + [0] * (TOKENS - 3)


@pytest.fixture(scope="module", params=CONDITIONED)
def case(request, tmp_path_factory):
    """Name, pipeline, and the model of the pipeline's real call."""
    pytest.importorskip("transformers")
    pipeline = build(request.param, tmp_path_factory.mktemp("pipeline"))
    arguments = {**CONDITIONED[request.param].arguments(), "num_inference_steps": STEPS}
    return request.param, pipeline, model_from_pipeline(pipeline, **arguments)


def shapes(model):
    return {name: entry.shape for name, entry in model.inputs.items()}


def test_a_saved_pipeline_gets_the_inputs_of_its_real_call(case, tmp_path: Path) -> None:
    name, pipeline, called = case
    expected = CONDITIONED[name]
    assert (called.latent_shape, shapes(called)) == (expected.latent, dict(expected.inputs))
    pipeline.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.latent_shape[0], list(loaded.inputs)) == (expected.latent[0], list(called.inputs))
    loaded = loaded.with_latent_shape(expected.latent)
    tokens = {key: entry.shape for key, entry in loaded.inputs.items() if key != "encoder_hidden_states"}
    assert tokens == {key: shape for key, shape in expected.inputs.items() if key != "encoder_hidden_states"}
    assert default_guidance(loaded) == default_guidance(called) == called.guidance
    for key in {"class_labels", "timestep_cond", "guidance"} & loaded.inputs.keys():
        assert all(map(torch.equal, *(m.inputs[key].rows(torch.tensor([0])) for m in (loaded, called)))), key


def test_the_call_leaves_the_pipeline_as_it_was(case) -> None:
    _, pipeline, called = case
    assert "forward" not in vars(called.module) and "step" not in vars(pipeline.scheduler)
    assert not called.behaviour, "the model is that of its files"
    assert called.steps == STEPS and called.module is getattr(pipeline, called.component)


def test_the_model_of_a_call_runs_on_its_inputs(case) -> None:
    _, _, called = case
    with torch.no_grad():
        output = called.forward(**called.example_inputs(2))
    assert output.shape[2:] == called.latent_shape[1:] and output.shape[1] in (
        called.latent_shape[0], 2 * called.latent_shape[0],
    )  # fmt: skip
    rows = called.conditioning([0, 1, 2], "concat")
    assert {key: array.shape for key, array in rows.items()} == {key: (6, *s) for key, s in shapes(called).items()}


def test_three_rows_an_image_are_refused_before_anything_runs(tmp_path: Path) -> None:
    pipeline, arguments = pix2pix(tmp_path / "tokenizer-1")
    with pytest.raises(UsageError, match="Pix2PixPipeline makes 3 rows an image, a schedule holds one or two: turn"):
        model_from_pipeline(pipeline, **arguments)
    assert model_from_pipeline(pipeline, **arguments, guidance_scale=1.0).guidance == "none"
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    for guidance in (None, "concat"):
        with pytest.raises(
            UsageError, match="three rows an image for its image_guidance_scale.*choose guidance 'none'"
        ):
            make_contract(loaded, guidance=guidance)
    assert make_contract(loaded, guidance="none").latent_shape == (4, 8, 8)


def test_arguments_without_an_input_are_refused_by_name(tmp_path: Path) -> None:
    pipeline = build("inpaint", tmp_path)
    arguments = CONDITIONED["inpaint"].arguments()
    with pytest.raises(UsageError, match="gives its denoiser cross_attention_kwargs, for which a graph has no input"):
        model_from_pipeline(pipeline, **arguments, cross_attention_kwargs={"own": 1.0})
    with pytest.raises(UsageError, match="the call of StableDiffusionInpaintPipeline fails"):
        model_from_pipeline(pipeline, prompt="a cat")
    pipeline.unet = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="StableDiffusionInpaintPipeline has no supported denoiser"):
        model_from_pipeline(pipeline, **arguments)


def test_a_reference_of_another_size_keeps_its_size(tmp_path: Path) -> None:
    arguments = {**CONDITIONED["flux-kontext"].arguments(), "image": torch.rand(1, 3, 8, 32)}
    model = model_from_pipeline(build("flux-kontext", tmp_path), **{**arguments, "max_area": 256})
    assert model.inputs["reference"].shape != (4, 8, 8) and model.latent_shape == (4, 8, 8)
    assert model.forward(**model.example_inputs(1)).shape == (1, 4, 8, 8)


def test_other_inputs_of_a_call_become_inputs_with_their_values(tmp_path: Path) -> None:
    """A mask of the text, which no preset has, is traced because the call passes it."""
    pipeline = build("inpaint", tmp_path)
    pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "encoder_attention_mask": torch.tensor([MASK] * 2)}),
        with_kwargs=True,
    )
    model = model_from_pipeline(pipeline, **CONDITIONED["inpaint"].arguments())
    mask = model.inputs["encoder_attention_mask"]
    assert mask.value.tolist() == MASK
    assert model.conditioning([0], "concat")["encoder_attention_mask"].tolist() == [MASK] * 2


@pytest.mark.parametrize(
    ("config", "inputs"),
    [
        ({"class_embed_type": "timestep"}, {"class_labels": ()}),
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 9}, {"class_labels": (9,)}),
        ({"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 9}, {"class_labels": (9,)}),
        ({"class_embed_type": "identity"}, {"class_labels": (32,)}),
        ({"num_class_embeds": 5}, {"class_labels": ()}),
        ({"encoder_hid_dim": 20}, {"encoder_hidden_states": (7, 20)}),
        ({"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_image_proj"},
         {"encoder_hidden_states": (7, 20), "image_embeds": (12,)}),
        ({"cross_attention_dim": [12, 12]}, {}),
        ({"cross_attention_dim": [8, 16]}, {"encoder_hidden_states": None}),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, {}),
        ({"addition_embed_type": "text_image"}, {"text_embeds": (12,), "image_embeds": (12,)}),
        ({"addition_embed_type": "image_hint", "encoder_hid_dim": 6, "in_channels": 8,
          "encoder_hid_dim_type": "image_proj", "out_channels": 8},
         {"encoder_hidden_states": None, "image_embeds": (6,), "hint": (3, 64, 64)}),
        ({"time_embedding_type": "fourier"}, {}),
        ({"center_input_sample": True, "in_channels": 5}, {"extra_channels": (1, 8, 8)}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if value and "class" not in str(value) else None,
)  # fmt: skip
def test_a_unet_gets_the_inputs_that_its_config_asks_for(config, inputs) -> None:
    torch.manual_seed(0)
    heads = {"attention_head_dim": 2}
    both = ("CrossAttnDownBlock2D",) * 2, ("CrossAttnUpBlock2D",) * 2
    lists = (
        dict(zip(("down_block_types", "up_block_types"), both, strict=True)) if "cross_attention_dim" in config else {}
    )
    model = model_from_module(unet(**heads, **lists, **config), text_tokens=TOKENS, scheduler_config={})
    expected = {"encoder_hidden_states": (TOKENS, 12), **inputs}
    assert shapes(model) == {name: shape for name, shape in expected.items() if shape is not None}
    with torch.no_grad():
        assert model.forward(**model.example_inputs(2)).shape[2:] == (8, 8)
    labels = model.conditioning([0, 1], "concat")
    assert all(len(rows) == 4 for rows in labels.values())


def test_text_of_different_widths_and_ip_adapters_are_refused() -> None:
    lists = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    with pytest.raises(InputError, match=r"cross_attention_dim \[12, 20\] gives the blocks texts of different widths"):
        model_from_module(unet(**lists, cross_attention_dim=[12, 20]))
    adapted = unet()
    adapted.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(InputError, match=r"has an IP-Adapter, whose images are no input: unload_ip_adapter\(\)"):
        model_from_module(adapted)


def test_video_from_an_image_looks_at_tokens_of_the_image() -> None:
    """The image's tokens of Wan 2.1. Models of a first and a last frame have two images a row, and are refused."""
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 12, "freq_dim": 16, "ffn_dim": 32}
    config = {**sizes, "num_layers": 1, "rope_max_seq_len": 32, "in_channels": 12, "out_channels": 4, "image_dim": 8}
    torch.manual_seed(0)
    module = diffusers.WanTransformer3DModel(**config, added_kv_proj_dim=24)
    model = model_from_module(module, latent_shape=(4, 2, 4, 4), text_tokens=TOKENS)
    expected = {"encoder_hidden_states_image": (257, 8), "extra_channels": (8, 2, 4, 4)}
    assert shapes(model) == {"encoder_hidden_states": (TOKENS, 12), **expected}
    assert model.forward(**model.example_inputs(2)).shape == (2, 4, 2, 4, 4)
    two = diffusers.WanTransformer3DModel(**config, added_kv_proj_dim=24, pos_embed_seq_len=514)
    with pytest.raises(InputError, match="takes two images a row, first and last frame, which no input holds"):
        model_from_module(two)


def test_guidance_is_embedded_as_diffusers_embeds_it(tmp_path: Path) -> None:
    pipeline = build("lcm", tmp_path)
    expected = pipeline.get_guidance_scale_embedding(torch.tensor([7.5]), embedding_dim=6)[0]
    assert torch.equal(torch.from_numpy(guidance_embedding(7.5, 6)), expected)


@pytest.mark.parametrize(
    ("pipeline", "tokens"),
    [("PixArtSigmaPipeline", 300), ("PixArtAlphaPipeline", 120), ("FluxPipeline", 512), ("WanPipeline", 512),
     ("StableDiffusion3Pipeline", 333), ("StableDiffusionPipeline", None), ("NoSuchPipeline", None)],
)  # fmt: skip
def test_the_length_of_the_text_is_that_of_the_pipeline(pipeline: str, tokens: int | None) -> None:
    assert PipelineCall.of(pipeline).tokens == tokens

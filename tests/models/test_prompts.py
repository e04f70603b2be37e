from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.models import load_model, make_contract, model_from_module, with_prompts
from tests.models.conditioned import unet
from tests.models.families import FAMILIES, tiny
from tests.models.pipelines import save_tokenizer, text_pipeline, tiny_text_encoder

pytest.importorskip("transformers", reason="prompts are encoded by transformers")

PROMPTS = ("a cat", "a black dog")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return text_pipeline(tmp_path_factory.mktemp("prompts") / "model")


@pytest.fixture(scope="module")
def plain(pipeline):
    return load_model(pipeline)


@pytest.fixture(scope="module")
def prompted(plain):
    return with_prompts(plain, PROMPTS)


@pytest.fixture
def copied(pipeline, tmp_path) -> Path:
    """A copy of the pipeline that a test may damage."""
    return Path(shutil.copytree(pipeline, tmp_path / "model"))


def edit_index(folder: Path, **entries: object) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entries))


@pytest.mark.parametrize(("prompt", "words"), [("", []), ("c", [28]), ("cab", [4, 2, 27]), ("a b", [26, 27])])
def test_a_row_is_what_the_encoder_makes_of_the_padded_prompt(prompt, words, plain):
    ids = torch.tensor([[0, *words, *[1] * 16][:16]])
    expected = tiny_text_encoder().eval()(input_ids=ids).last_hidden_state
    assert (with_prompts(plain, [prompt]).class_embedder(torch.tensor([0])) - expected).abs().max() <= 1e-6


def test_the_tokens_are_those_of_the_text_pipeline_of_diffusers(pipeline, prompted):
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    parts = {"vae": vae, "safety_checker": None, "feature_extractor": None, "image_encoder": None}
    theirs = StableDiffusionPipeline.from_pretrained(pipeline, local_files_only=True, **parts)
    prompt, negative = theirs.encode_prompt(list(PROMPTS), "cpu", 1, True)
    ours = prompted.conditioning([0, 1], "concat")["encoder_hidden_states"]
    assert np.abs(ours - torch.cat([negative, prompt]).detach().numpy()).max() <= 1e-6


def test_prompts_that_are_cut_are_counted(plain, prompted):
    words = " ".join(["cat"] * 400)
    cut = with_prompts(plain, ["a cat", words, f"{words} dog"])
    assert cut.class_embedder.note.startswith(
        "2 of 3 prompts are longer than the 16 tokens that the text encoder takes, and are cut as in diffusers: the "
        "first has 400 words and 1202 tokens ('cat cat"
    )
    assert torch.equal(cut.class_embedder(torch.tensor([1])), cut.class_embedder(torch.tensor([2])))
    assert prompted.class_embedder.note == ""


def test_conditioning_by_number_of_the_prompt(prompted):
    table = prompted.class_embedder
    both = prompted.conditioning([1, 0, 1], "concat")["encoder_hidden_states"]
    assert both.shape == (6, 16, 8) and both.dtype == np.float32
    assert (both == table(torch.tensor([2, 2, 2, 1, 0, 1])).numpy()).all()
    assert (prompted.conditioning([0], "none")["encoder_hidden_states"] == both[4:5]).all()
    assert np.abs(both[3] - both[4]).max() > 1e-3 and np.abs(both[0] - both[4]).max() > 1e-3
    with pytest.raises(UsageError, match="between 0 and 1, got"):
        prompted.conditioning([2], "none")


def test_a_model_with_prompts_is_the_same_model(plain, prompted):
    assert prompted.digest == plain.digest and make_contract(prompted) == make_contract(plain)
    assert (plain.class_embedder, plain.num_classes, prompted.num_classes) == (None, None, 2)
    assert prompted.example_inputs(3)["encoder_hidden_states"].shape == (3, 77, 8)
    assert prompted.forward(**prompted.example_inputs(2)).shape == (2, 4, 8, 8)
    assert prompted.as_dtype("float64").conditioning([0], "none")["encoder_hidden_states"].dtype == np.float64


def test_the_last_prompts_count_and_a_long_one_is_cut(prompted):
    again = with_prompts(prompted, ["a " * 99, "a " * 14])
    assert again.num_classes == 2
    rows = again.class_embedder(torch.tensor([0, 1]))
    assert (rows[0] - rows[1]).abs().max() == 0


def test_prompts_share_the_trace_and_another_range_of_lengths_does_not(plain, prompted, tmp_path, monkeypatch):
    from dipgo_deploy.graphs import trace

    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path))
    traced = trace(prompted)
    assert (traced.blocks.model_digest, traced.blocks.inputs[2].shape) == (plain.digest, ("rows", "tokens", 8))
    module = sys.modules[trace.__module__]
    monkeypatch.setattr(module, "write_trace", Mock(side_effect=RuntimeError("traced again")))
    assert trace(plain) == trace(prompted) == trace(prompted, out=traced.folder) == traced
    for tokens in (SizeRange(16, 16, 16), SizeRange(1, 77, 2048)):
        with pytest.raises(RuntimeError, match="traced again"):
            trace(plain.with_tokens(tokens))


def test_models_that_prompts_do_not_belong_to(digits_unet, digits_dit, plain):
    for model in (digits_unet, digits_dit):
        with pytest.raises(UsageError, match="is conditioned on class numbers, not on prompts: give numbers"):
            with_prompts(model, PROMPTS)
    with pytest.raises(UsageError, match="there is no prompt: give at least one"):
        with_prompts(plain, [])
    bare = replace(plain.preset, example=lambda *given: {"sample": torch.zeros(1), "timestep": torch.zeros(1)})
    with pytest.raises(UsageError, match="this UNet2DConditionModel takes nothing: search without prompts"):
        with_prompts(replace(plain, preset=bare), PROMPTS)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("sdxl", "encoder_hidden_states, text_embeds"),
        ("pixart-sigma", "encoder_hidden_states, encoder_attention_mask"),
        ("inpaint", "encoder_hidden_states, extra_channels"),
    ],
)
def test_prompts_are_refused_beside_inputs_that_they_do_not_give(name, inputs):
    model = tiny(name) if name in FAMILIES else model_from_module(unet(in_channels=9))
    with pytest.raises(UsageError, match=f"takes {inputs}: search without prompts"):
        with_prompts(model, PROMPTS)


def test_prompts_stand_beside_an_embedded_guidance_weight(pipeline, plain, prompted):
    module = unet(time_cond_proj_dim=6, cross_attention_dim=8)
    model = with_prompts(model_from_module(module, folder=pipeline), PROMPTS)
    given = model.conditioning([1], "none")
    assert set(given) == {"encoder_hidden_states", "timestep_cond"}
    assert np.array_equal(given["encoder_hidden_states"], prompted.conditioning([1], "none")["encoder_hidden_states"])


def test_without_a_pipeline_or_with_another_number_of_encoders(plain, copied):
    for folder in (None, copied / "unet"):
        with pytest.raises(InputError, match="with one text_encoder, .* has none: use another model"):
            with_prompts(replace(plain, folder=folder), PROMPTS)
    edit_index(copied, text_encoder_2=["transformers", "CLIPTextModel"])
    with pytest.raises(InputError, match="has text_encoder and text_encoder_2: use another"):
        with_prompts(load_model(copied), PROMPTS)
    edit_index(copied, text_encoder=[None, None], text_encoder_2=[None, None])
    with pytest.raises(InputError, match="has none: use another"):
        with_prompts(load_model(copied), PROMPTS)


def test_an_encoder_of_another_width(tmp_path):
    model = load_model(text_pipeline(tmp_path / "model", dim=12))
    with pytest.raises(InputError, match="gives tokens of width 8, but its UNet2DConditionModel takes 12: use"):
        with_prompts(model, PROMPTS)


def test_a_tokenizer_that_is_missing_foreign_empty_or_too_large(copied):
    model = load_model(copied)
    shutil.rmtree(copied / "tokenizer")
    (copied / "tokenizer").mkdir()
    (copied / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 16}')
    with pytest.raises(InputError, match="tokenizer holds no vocabulary"):
        with_prompts(model, PROMPTS)
    edit_index(copied, tokenizer=["transformers", "CLIPTextModel"])
    with pytest.raises(InputError, match="CLIPTextModel of transformers is not a known tokenizer"):
        with_prompts(model, PROMPTS)
    edit_index(copied, tokenizer=None)
    with pytest.raises(InputError, match="has no entry tokenizer: use the whole pipeline"):
        with_prompts(model, PROMPTS)
    edit_index(copied, tokenizer=["transformers", "CLIPTokenizer"])
    save_tokenizer(copied / "tokenizer", "abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(InputError, match="text_encoder cannot be run as CLIPTextModel .*: restore its files"):
        with_prompts(model, ["zzz"])


def test_an_encoder_without_safetensors_and_a_machine_without_transformers(plain, copied, monkeypatch):
    (copied / "text_encoder" / "model.safetensors").rename(copied / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(InputError, match="text_encoder cannot be run as CLIPTextModel .*: restore its files"):
        with_prompts(replace(plain, folder=copied), PROMPTS)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingError, match="transformers is not installed: pip install transformers"):
        with_prompts(plain, PROMPTS)


def test_a_text_encoder_of_a_variant_alone_is_found(copied, prompted):
    (copied / "text_encoder" / "model.safetensors").rename(copied / "text_encoder" / "model.fp16.safetensors")
    found = with_prompts(load_model(copied), PROMPTS)
    assert torch.equal(found.class_embedder.rows, prompted.class_embedder.rows)

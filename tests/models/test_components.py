from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dipgo_deploy.core.errors import InputError, MissingError
from dipgo_deploy.models.components import PipelineRun, load_component
from dipgo_deploy.models.pipeline_folder import component_names
from tests.models.pipelines import pipeline_from, tiny_text_encoder

RUN = PipelineRun(prompts=2, latents=(3, 1, 16, 16))


@pytest.fixture(scope="module")
def pipeline(digits_unet, tmp_path_factory) -> Path:
    return pipeline_from(digits_unet.folder, tmp_path_factory.mktemp("pipeline") / "model")


def edit_index(folder: Path, **entries: object) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entries))
    return folder


def test_components_are_named_in_the_order_in_which_they_run(pipeline, digits_unet):
    assert component_names(pipeline) == ("text_encoder", "vae")
    assert component_names(digits_unet.folder) == ()


def test_a_vae_decodes_the_batch(pipeline, monkeypatch):
    from diffusers import AutoencoderKL

    decode, shapes = AutoencoderKL.decode, []
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: shapes.append(z.shape) or decode(self, z))
    load_component(pipeline, "vae", RUN)()
    assert shapes == [(3, 1, 16, 16)] * 2  # load_component runs it once


def test_a_text_encoder_takes_as_many_tokens_as_the_tokenizer_gives(pipeline, monkeypatch):
    encoder_class, shapes = type(tiny_text_encoder()), []
    forward = encoder_class.forward
    monkeypatch.setattr(
        encoder_class, "forward", lambda self, input_ids: shapes.append(input_ids.shape) or forward(self, input_ids)
    )
    load_component(pipeline, "text_encoder", RUN)()
    assert set(shapes) == {(2, 16)}


@pytest.mark.parametrize(("limit", "tokens"), [(10**30, 77), (None, 77), (512, 77), (8, 8)])
def test_a_tokenizer_without_a_limit_and_one_above_the_models(limit, tokens, digits_unet, tmp_path, monkeypatch):
    folder = pipeline_from(digits_unet.folder, tmp_path / "model")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    encoder_class, shapes = type(tiny_text_encoder()), []
    monkeypatch.setattr(encoder_class, "forward", lambda self, input_ids: shapes.append(input_ids.shape))
    load_component(folder, "text_encoder", RUN)
    assert shapes == [(2, tokens)]


def test_without_transformers_it_is_named_as_missing(pipeline, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingError, match="transformers is not installed: pip install transformers"):
        load_component(pipeline, "text_encoder", RUN)


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("vae", ["somewhere", "AutoencoderKL"], "vae is a class of somewhere instead of diffusers"),
        ("vae", ["diffusers", "DDIMScheduler"], "DDIMScheduler of diffusers is not a known vae"),
        ("vae", ["diffusers", "UNet2DConditionModel"], "UNet2DConditionModel of diffusers is not a known vae"),
        ("text_encoder", ["transformers", "pipeline"], "pipeline of transformers is not a known text_encoder"),
        ("text_encoder", ["transformers", "NoSuchModel"], "NoSuchModel of transformers is not a known text_encoder"),
    ],
)
def test_an_unknown_component_is_refused(name, entry, words, digits_unet, tmp_path):
    folder = edit_index(pipeline_from(digits_unet.folder, tmp_path / "model"), **{name: entry})
    with pytest.raises(InputError, match=words):
        load_component(folder, name, RUN)


def test_a_damaged_folder_and_a_vae_of_other_latents_are_refused(digits_unet, tmp_path):
    folder = pipeline_from(digits_unet.folder, tmp_path / "model", vae_channels=4)
    with pytest.raises(InputError, match="the vae decodes 4 channels, but the latents have 1"):
        load_component(folder, "vae", RUN)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="vae cannot be run as AutoencoderKL .*: restore its files"):
        load_component(folder, "vae", RUN)

"""Text encoders that a LoRA adapts too: a search's prompts and a bundle's pipeline use them with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dipgo_deploy.bundle import export
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, load_model, make_contract
from dipgo_deploy.models.lora import with_loras
from dipgo_deploy.models.lora_files import LoraFile
from dipgo_deploy.models.prompts import with_prompts
from dipgo_deploy.models.text_loras import save_text_encoder
from dipgo_deploy.pipeline import load_pipeline
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from tests.models.pipelines import text_pipeline
from tests.pipeline.pipelines import TOKENS, build

pytest.importorskip("transformers")
pytest.importorskip("peft", reason="peft is not installed: pip install 'dipgo-deploy[lora]'")

UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LAYER = "encoder.layers.0.self_attn.q_proj"
TEXT = f"text_encoder.text_model.{LAYER}"


def adapter(path: Path, layers: dict[str, int]) -> LoraFile:
    """A LoRA of rank 2 for linear layers of these widths."""
    tensors: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(3)
    for name, width in layers.items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, width, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(width, 2, generator=generator)
    save_file(tensors, path)
    return LoraFile(path, 0.5)


def width(model: LoadedModel) -> int:
    return int(model.module.get_submodule(UNET.removeprefix("unet.")).in_features)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return text_pipeline(tmp_path / "pipeline")


@pytest.fixture
def adapted(pipeline: Path, tmp_path: Path) -> tuple[LoadedModel, LoraFile]:
    model = load_model(pipeline)
    lora = adapter(tmp_path / "style.safetensors", {UNET: width(model), TEXT: 8})
    return with_loras(model, [lora]), lora


def theirs(pipeline: Path, lora: LoraFile) -> Any:
    """The pipeline with the adapter fused by diffusers."""
    from diffusers import DiffusionPipeline

    absent = {"vae": None, "safety_checker": None, "feature_extractor": None, "image_encoder": None}
    made = DiffusionPipeline.from_pretrained(pipeline, local_files_only=True, **absent)
    made.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name)
    made.fuse_lora(lora_scale=lora.scale)
    made.unload_lora_weights()
    return made


def test_prompts_of_a_search_are_encoded_with_it(pipeline, adapted):
    model, lora = adapted
    made = theirs(pipeline, lora)
    prompt, negative = made.encode_prompt(["a cat", "dogs"], "cpu", 1, True)
    ours = with_prompts(model, ["a cat", "dogs"]).conditioning([0, 1], "concat")["encoder_hidden_states"]
    assert np.abs(ours - torch.cat([negative, prompt]).detach().numpy()).max() <= 1e-6
    plain = with_prompts(load_model(pipeline), ["a cat", "dogs"]).conditioning([0, 1], "concat")
    assert np.abs(ours - plain["encoder_hidden_states"]).max() > 1e-2


def test_an_alpha_that_only_the_header_tells_counts(pipeline, tmp_path: Path):
    model = load_model(pipeline)
    lora = adapter(tmp_path / "style.safetensors", {UNET: width(model), TEXT: 8})
    entries = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "to_q"]}
    header = {f"{name}.{key}": value for name in ("unet", "text_encoder") for key, value in entries.items()}
    save_file(load_file(lora.path), lora.path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(header)})
    save_text_encoder(with_loras(model, [lora]), "text_encoder", tmp_path / "fused")
    found, wanted = saved(tmp_path / "fused"), theirs(pipeline, lora).text_encoder.state_dict()
    assert max((found[key] - wanted[key]).abs().max().item() for key in wanted) == 0
    assert max((found[key] - saved(pipeline / "text_encoder")[key]).abs().max().item() for key in wanted) > 1e-2


def test_every_layer_of_kohyas_files_has_its_own_alpha(pipeline, tmp_path: Path):
    plain, tensors, expected = saved(pipeline / "text_encoder"), {}, {}
    layers = {"unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": 4.0}
    layers |= {f"te_text_model_encoder_layers_0_{name}": alpha for name, alpha in TEXT_ALPHAS.items()}
    for layer, alpha in layers.items():
        key = f"{LAYER.rpartition('.')[0]}.{layer[-6:]}.weight".replace("self_attn.lp_fc1", "mlp.fc1")
        rows, columns = plain[key].shape if key in plain else (width(load_model(pipeline)),) * 2
        down, up = torch.randn(2, columns), torch.randn(rows, 2)
        tensors |= {f"lora_{layer}.lora_down.weight": down, f"lora_{layer}.lora_up.weight": up}
        tensors[f"lora_{layer}.alpha"] = torch.tensor(alpha)
        if key in plain:
            expected[key] = plain[key] + alpha / 2 * up @ down
    save_file(tensors, tmp_path / "kohya.safetensors")
    fused = with_loras(load_model(pipeline), [LoraFile(tmp_path / "kohya.safetensors")])
    save_text_encoder(fused, "text_encoder", tmp_path / "fused")
    found = saved(tmp_path / "fused")
    assert len(expected) == 3
    assert max((found[key] - weight).abs().max().item() for key, weight in expected.items()) <= 1e-5


TEXT_ALPHAS = {"self_attn_q_proj": 1.0, "self_attn_v_proj": 2.0, "mlp_fc1": 8.0}
"""Alphas of a text encoder's layers, all different."""


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_folder_is_left_alone_and_a_dtype_kept(pipeline, adapted, tmp_path: Path):
    from transformers import CLIPTextModel

    model, _ = adapted
    weights = pipeline / "text_encoder" / "model.safetensors"
    CLIPTextModel.from_pretrained(pipeline / "text_encoder").half().save_pretrained(pipeline / "text_encoder")
    before = weights.read_bytes()
    save_text_encoder(model, "text_encoder", tmp_path / "fused")
    assert weights.read_bytes() == before
    fused = CLIPTextModel.from_pretrained(tmp_path / "fused", dtype="auto")
    assert fused.dtype == torch.float16 and {path.suffix for path in (tmp_path / "fused").iterdir()} == {
        ".json",
        ".safetensors",
    }
    assert {name for name, _ in fused.named_parameters()} == {
        name for name, _ in CLIPTextModel.from_pretrained(pipeline / "text_encoder").named_parameters()
    }


def test_a_bundles_pipeline_has_every_text_encoder_fused(tmp_path: Path):
    build("sdxl", tmp_path / "pipeline")
    model = replace(load_model(tmp_path / "pipeline"), latent_shape=(4, 8, 8), text_tokens=TOKENS)
    layers = {UNET: width(model)}
    for name in ("text_encoder", "text_encoder_2"):
        layers[f"{name}.text_model.{LAYER}"] = text_width(tmp_path / "pipeline", name)
    lora = adapter(tmp_path / "style.safetensors", layers)
    fused = with_loras(model, [lora])
    assert set(fused.text_loras) == {"text_encoder", "text_encoder_2"}
    schedule = schedule_by_rule(trace(fused).blocks, make_contract(fused, steps=2), SearchOptions("uniform", 0.4))
    ours, made = load_pipeline(export(fused, schedule, tmp_path / "bundle")), theirs(tmp_path / "pipeline", lora)
    plain = load_model(tmp_path / "pipeline")
    assert fused.digest != plain.digest
    for name in fused.text_loras:
        found, wanted = getattr(ours, name).state_dict(), getattr(made, name).state_dict()
        assert found.keys() == wanted.keys()
        assert max((found[key] - wanted[key]).abs().max().item() for key in wanted) <= 1e-6
    assert ours.unet.bundle.model.digest == fused.digest
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "| LoRA fused into text_encoder_2 | style.safetensors x 0.5 |\n\nFixed: " in card


def text_width(folder: Path, name: str) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(folder / name).hidden_size)


def test_two_adapters_add_up(pipeline, tmp_path: Path):
    from transformers import CLIPTextModel

    model = load_model(pipeline)
    lora = adapter(tmp_path / "style.safetensors", {UNET: width(model), TEXT: 8})
    away = LoraFile(lora.path, -lora.scale)
    save_text_encoder(with_loras(model, [lora, away]), "text_encoder", tmp_path / "fused")
    found = CLIPTextModel.from_pretrained(tmp_path / "fused").state_dict()
    wanted = CLIPTextModel.from_pretrained(pipeline / "text_encoder").state_dict()
    assert max((found[key] - wanted[key]).abs().max().item() for key in wanted) <= 1e-6


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ({TEXT.replace("q_proj", "no_proj"): 8}, "cannot be fused into this text_encoder"),
        ({TEXT: 9}, "cannot be fused into this text_encoder"),
        ({TEXT: 8, TEXT.replace("layers.0", "layers.7"): 8}, "adapts layers that this text_encoder lacks"),
    ],
)
def test_an_adapter_of_another_text_encoder_is_refused(layers, says, pipeline, tmp_path: Path):
    model = load_model(pipeline)
    fused = with_loras(model, [adapter(tmp_path / "style.safetensors", {UNET: width(model), **layers})])
    with pytest.raises(InputError, match=f"style.safetensors.* {says}"):
        save_text_encoder(fused, "text_encoder", tmp_path / "fused")
    assert not (tmp_path / "fused").exists()
    with pytest.raises(InputError, match=says):
        with_prompts(fused, ["a cat"])

"""Folders of other things than a supported denoiser are refused by what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models import load_model


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("modular_model_index.json", "it is a modular pipeline: load it in diffusers, and save"),
        ("adapter_config.json", "it is an adapter that PEFT saved"),
        ("pytorch_lora_weights.safetensors", "it is a LoRA: give the model that it was made for"),
        ("model.onnx", "it is an ONNX export"),
        ("model.gguf", "it holds GGUF files"),
        ("diffusion_flax_model.msgpack", "it holds Flax weights"),
        ("sdxl.safetensors", "it holds safetensors: give one of the files"),
    ],
)
def test_folders_without_an_index(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"has neither model_index.json nor config.json, {says}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (["diffusers", "OnnxRuntimeModel"], "is an ONNX export: give the diffusers folder"),
        (["optimum.onnxruntime", "ORTModelUnet"], "is an ONNX export"),
        (["optimum", "OVModelUnet"], "is an OpenVINO export"),
        (["diffusers", "FlaxUNet2DConditionModel"], "is a Flax pipeline: save it with PyTorch weights"),
        ([None, None], "names no class for its unet: give a pipeline with a unet"),
        (["diffusers", "Kandinsky3UNet"], "holds a Kandinsky3UNet, supported are UNet2DConditionModel"),
    ],
)
def test_pipelines_of_other_libraries_and_classes(entry: list[str | None], says: str, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": entry[1]}))
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": entry}))
    with pytest.raises(InputError, match=says):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "AutoencoderKL"}, "holds a AutoencoderKL, supported are"),
        ({"_class_name": "ControlNetModel"}, "holds a ControlNetModel, supported are"),
        ({"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}, "holds a CLIPTextModel, supported are"),
        ({"model_type": "t5"}, "holds a t5, supported are"),
        ({}, "holds a model without a class name, supported are"),
    ],
)
def test_components_of_a_pipeline_that_are_no_denoiser(config: dict[str, object], says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=says):
        load_model(tmp_path)

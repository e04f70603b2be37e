"""Folders that are no diffusers pipeline: what they are, for the message that refuses them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipgo_deploy.core.errors import InputError

__all__ = ["check_library", "what_it_is"]

_FILES = {
    "modular_model_index.json": "it is a modular pipeline: load it in diffusers, and save its denoiser or an ordinary "
    "pipeline",
    "adapter_config.json": "it is an adapter that PEFT saved: give the model that it was made for",
    "pytorch_lora_weights.safetensors": "it is a LoRA: give the model that it was made for, and the file as lora",
    "learned_embeds.safetensors": "it is a textual inversion: give a diffusers folder",
    "*.gguf": "it holds GGUF files, whose weights are quantised: give the model with its unquantised weights",
    "*.onnx": "it is an ONNX export: give the diffusers folder that it was exported from",
    "*.msgpack": "it holds Flax weights: save the model as safetensors",
    "*.safetensors": "it holds safetensors: give one of the files",
}
"""What a folder without an index is, by a file in it."""

_LIBRARIES = {
    "Onnx": "an ONNX export: give the diffusers folder that it was exported from",
    "ORT": "an ONNX export: give the diffusers folder that it was exported from",
    "OV": "an OpenVINO export: give the diffusers folder that it was exported from",
    "Flax": "a Flax pipeline: save it with PyTorch weights",
    "Nunchaku": "quantised by SVDQuant (nunchaku): give the model with its unquantised weights",
}
"""Other libraries, by the start of the class that an index names."""


def what_it_is(folder: Path) -> str:
    """The end of a message about a folder without an index: what the folder is, and what to give instead."""
    return next((f", {words}" for name, words in _FILES.items() if any(folder.glob(name))), ": give a diffusers folder")


def check_library(folder: Path, name: str, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline whose denoiser belongs to another library.

    Args:
        folder: the pipeline's folder.
        name: the denoiser's name in the index.
        index: the pipeline's ``model_index.json``.

    Raises:
        InputError: the denoiser is absent, or its class is not one of PyTorch.
    """
    entry = index[name]
    class_name = entry[1] if isinstance(entry, list) and len(entry) > 1 else None
    if class_name is None:
        raise InputError(f"{folder / 'model_index.json'} names no class for its {name}: give a pipeline with a {name}")
    for start, words in _LIBRARIES.items():
        if str(class_name).startswith(start):
            raise InputError(f"{folder} is {words}")
    if any((folder / name).glob("*.onnx")) and not (folder / name / "config.json").is_file():
        raise InputError(f"{folder} is {_LIBRARIES['Onnx']}")

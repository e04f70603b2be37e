"""LoRA files for the tiny models, and what diffusers makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dipgo_deploy.models.lora_files import lora_loader
from tests.models.families import tiny

__all__ = ["LAYERS", "adapter", "fused_by_diffusers", "largest_difference", "with_header"]

LAYERS = {
    "sd": "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "sdxl": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "sd3": "transformer_blocks.1.attn.to_v",
    "flux": "single_transformer_blocks.0.attn.to_q",
    "wan": "blocks.1.attn1.to_k",
}
"""By family, a linear layer that the test adapts."""


def adapter(name: str, folder: Path, rank: int = 2, extra: str = "") -> tuple[Path, torch.Tensor]:
    """A LoRA file for one layer of a family, and the change of its weight at scale 1."""
    model = tiny(name)
    layer = model.module.get_submodule(LAYERS[name])
    down, up = torch.randn(rank, layer.in_features), torch.randn(layer.out_features, rank)
    prefix = f"{model.component}.{LAYERS[name]}"
    tensors = {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    if extra:
        tensors |= {f"{extra}.lora_A.weight": down.clone(), f"{extra}.lora_B.weight": up.clone()}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors", up @ down


def fused_by_diffusers(name: str, path: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The state dict after ``load_lora_weights`` and ``fuse_lora``."""
    model = tiny(name)
    pipeline: Any = type("Pipeline", (lora_loader(model.class_name),), {})()
    pipeline.components, pipeline.hf_device_map = {model.component: model.module}, None
    pipeline.text_encoder = pipeline.text_encoder_2 = None
    setattr(pipeline, model.component, model.module)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    pipeline.fuse_lora(components=[model.component], lora_scale=scale)
    model.module.unload_lora()
    return model.module.state_dict()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def with_header(path: Path, component: str, **entries: Any) -> Path:
    """The file with a PEFT config in its header, as diffusers saves it."""
    config = {f"{component}.{name}": value for name, value in entries.items()}
    save_file(load_file(path), path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    return path

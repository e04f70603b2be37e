"""Formats of adapter files, told apart by the names of their tensors.

1. diffusers and PEFT fuse low-rank layers: ``lora_A`` and ``lora_B``, or ``lora_down`` and ``lora_up`` in older files.
2. Other formats are refused by name. diffusers would skip their tensors and fuse the rest, which is another model.
3. In kohya's format every layer has its own alpha. diffusers keeps one alpha for many layers, so the alphas are
   multiplied into the weights here, before diffusers converts the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dipgo_deploy.core.errors import InputError

__all__ = ["bake_alphas", "check_format", "layer_of", "without_zero_differences"]

_LOW_RANK = r"lora_(A|B|up|down|embedding|magnitude|linear|edit)|lora\d?\.(up|down)"
_ADAPTERS = {
    r"\blora_mid\b": "LoCon with a Tucker core",
    r"\bdora_scale$": "a DoRA in kohya's format",
    r"\bhada_[wt]\d": "a LoHa",
    r"\blokr_[wt]\d": "a LoKr",
    r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$": "a GLoRA",
    r"\.on_input$|\bia3_l\b": "an IA3",
    r"\bb?oft_|\boft\b": "an OFT",
    r"\bvera_lambda": "a VeRA",
    r"\b(w_norm|b_norm|set_weight|reshape_weight)$": "LyCORIS with more than low-rank layers",
    r"\.diff(_b)?$": "LyCORIS with full differences of weights",
    r"\blora_controlnet$": "a Control-LoRA, which is a ControlNet",
    r"\.norm_(added_)?[qk]\.|query_norm\.scale$": "a Control LoRA, which widens the model's input",
}
"""Adapters that are not plain low-rank layers, by a pattern of one of their tensors' names."""

_OTHERS = {
    r"^(image_proj|ip_adapter)\.": "an IP-Adapter",
    r"^(emb_params|clip_[lg]|string_to_param|<.*>)$": "a textual inversion",
    r"^control_model\.|^controlnet_cond_embedding\.|^controlnet_": "a ControlNet",
    r"motion_modules\.": "a motion module",
}
"""Files that people mistake for a LoRA."""

_ALPHA = ".alpha"
_PAIRS = (("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora.down", "lora.up"))


def check_format(path: Path, tensors: Mapping[str, Any], *, keeps_biases: bool = False) -> None:
    """Refuse every format but low-rank layers.

    Args:
        path: the file, for the message.
        tensors: its tensors by name.
        keeps_biases: whether diffusers reads ``diff_b`` as the bias of a layer, as for Wan.

    Raises:
        InputError: the file has another format, or has no low-rank layers.
    """
    names = [name for name in tensors if not (keeps_biases and name.endswith(".diff_b") and "norm" not in name)]
    for pattern, title in _ADAPTERS.items():
        if name := next((name for name in names if re.search(pattern, name)), None):
            raise InputError(
                f"{path} is {title} ({name}), only low-rank layers can be fused: merge it into the model with the tool "
                "that trained it, and give that model"
            )
    if any(re.search(_LOW_RANK, name) for name in names):
        return
    for pattern, title in _OTHERS.items():
        if any(re.search(pattern, name) for name in names):
            raise InputError(f"{path} is {title} instead of a LoRA: leave it out")
    first = f", its first tensor is {names[0]}" if names else " and no tensors"
    raise InputError(f"{path} holds no low-rank layers{first}: give a LoRA")


def without_zero_differences(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without full differences that are zero. Trainers write them, and they change nothing."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith((".diff", ".diff_b")) and not tensor.any())
    }


def bake_alphas(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Multiply each layer's ``alpha / rank`` into the layer, and drop the alphas.

    A layer keeps its dtype if the product is exact in this dtype. Otherwise the layer becomes float32.

    Args:
        tensors: tensors by name.

    Returns:
        Tensors by name. An alpha without a layer stays.
    """
    baked = dict(tensors)
    for name in [name for name in tensors if name.endswith(_ALPHA)]:
        layer = name.removesuffix(_ALPHA)
        for down, up in ((f"{layer}.{down}.weight", f"{layer}.{up}.weight") for down, up in _PAIRS):
            if down in baked and up in baked:
                scale = float(baked.pop(name)) / baked[down].shape[0]
                baked[down], baked[up] = _scaled(baked[down], baked[up], scale)
                break
    return baked


def layer_of(name: str) -> str:
    """The layer that a tensor of a low-rank adapter belongs to, in the file's own spelling."""
    return re.sub(r"\.(lora_)?(down|up|A|B|magnitude_vector|diff_b)(\.weight|\.bias)?$", "", name)


def _scaled(down: torch.Tensor, up: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    product = up * scale
    exact = up.double() * scale
    return (down, product) if torch.equal(product.double(), exact) else (down.float(), exact.float())

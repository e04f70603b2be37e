"""Formats of adapter files: kohya's alphas, and what is refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.lora import with_loras
from dipgo_deploy.models.lora_files import LoraFile
from tests.models.families import tiny
from tests.models.loras import LAYERS, adapter, fused_by_diffusers, largest_difference, with_header

pytest.importorskip("peft", reason="peft is not installed: pip install 'dipgo-deploy[lora]'")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_layer_of_kohyas_files_has_its_own_alpha(dtype: torch.dtype, tmp_path: Path):
    layers = {LAYERS["sd"]: 1.0, LAYERS["sd"].replace("attn1.to_q", "attn2.to_k"): 3.0, "conv_in": 2.0}
    module, tensors, expected = tiny("sd").module, {}, {}
    for layer, alpha in layers.items():
        weight = module.get_submodule(layer).weight
        down, up = torch.randn(2, *weight.shape[1:]).to(dtype), torch.randn(weight.shape[0], 2).to(dtype)
        expected[layer] = weight + alpha / 2 * (up.float() @ down.float().flatten(1)).reshape(weight.shape)
        prefix = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{prefix}.lora_down.weight": down, f"{prefix}.alpha": torch.tensor(alpha)}
        tensors[f"{prefix}.lora_up.weight"] = up.reshape(*up.shape, *[1] * (weight.dim() - 2))
    save_file(tensors, tmp_path / "lora.safetensors")
    fused = with_loras(tiny("sd"), [LoraFile(tmp_path / "lora.safetensors")]).module
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3  # PEFT rounds the change to the file's dtype
    for layer, weight in expected.items():
        assert (fused.get_submodule(layer).weight - weight).abs().max() <= tolerance, layer


def test_what_diffusers_conversion_drops_is_counted(tmp_path: Path):
    """In ComfyUI's files for FLUX, diffusers skips the T5 and position embeddings with a message in its log."""
    dim = tiny("flux").module.config.num_attention_heads * tiny("flux").module.config.attention_head_dim
    tensors = {}
    for layer in ("diffusion_model.double_blocks.0.img_attn.proj", "text_encoders.t5xxl.transformer.block.0.q"):
        tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"] = (
            torch.rand(2, dim),
            torch.rand(dim, 2),
        )
    save_file(tensors, tmp_path / "lora.safetensors")
    says = "adapts 2 layers, 1 of which this FluxTransformer2DModel lacks, such as text_encoders.t5xxl.transformer"
    with pytest.warns(UserWarning, match=says):
        fused = with_loras(tiny("flux"), [LoraFile(tmp_path / "lora.safetensors")]).module.state_dict()
    assert largest_difference(fused, fused_by_diffusers("flux", tmp_path / "lora.safetensors")) == 0


OTHER_NAMES = {
    "kohya": ("flux", "lora_unet_double_blocks_0_img_attn_qkv", ("lora_down", "lora_up"), 3),
    "comfy": ("flux", "diffusion_model.single_blocks.0.linear2", ("lora_down", "lora_up"), 0),
    "xlabs": ("flux", "double_blocks.0.processor.qkv_lora1", ("down", "up"), 3),
    "wan": ("wan", "diffusion_model.blocks.0.self_attn.q", ("lora_down", "lora_up"), 1),
}
"""Tools by family: a layer as the tool names it, its two factors, and how many layers of diffusers it becomes."""


@pytest.mark.parametrize("tool", OTHER_NAMES)
def test_names_of_other_tools_are_fused_as_by_diffusers(tool: str, tmp_path: Path):
    torch.manual_seed(0)
    family, layer, (down, up), count = OTHER_NAMES[tool]
    width = tiny("flux").module.inner_dim if family == "flux" else tiny("wan").module.blocks[0].attn1.to_q.in_features
    columns = width if count else tiny("flux").module.single_transformer_blocks[0].proj_out.in_features
    tensors = {
        f"{layer}.{down}.weight": torch.randn(2, columns),
        f"{layer}.{up}.weight": torch.randn(width * (count or 1), 2),
    }
    if tool != "xlabs":
        tensors[f"{layer}.alpha"] = torch.tensor(3.0)
    save_file(tensors, tmp_path / "lora.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = with_loras(tiny(family), [LoraFile(tmp_path / "lora.safetensors")]).module.state_dict()
    plain = tiny(family).module.state_dict()
    assert sum(not torch.equal(fused[name], plain[name]) for name in plain) == (count or 1)
    assert largest_difference(fused, fused_by_diffusers(family, tmp_path / "lora.safetensors")) <= 1e-5


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (
            "lora_unet_X.dora_scale",
            "is a DoRA in kohya's format .*: merge it into the model with the tool that trained",
        ),
        ("lora_unet_X.lora_mid.weight", "is LoCon with a Tucker core"),
        ("lora_unet_Y.hada_w1_a", "is a LoHa"),
        ("lora_unet_Y.lokr_w1", "is a LoKr"),
        ("lora_unet_Y.a1.weight", "is a GLoRA"),
        ("lora_unet_Y.on_input", "is an IA3"),
        ("lora_unet_Y.oft_blocks", "is an OFT"),
        ("lora_unet_Y.diff", "full differences of weights"),
        ("lora_unet_Y.diff_b", "full differences of weights"),
        ("lora_unet_Y.w_norm", "more than low-rank layers"),
        ("lora_controlnet", "is a Control-LoRA, which is a ControlNet"),
    ],
)
def test_formats_that_are_not_low_rank_are_refused_by_name(extra: str, says: str, tmp_path: Path):
    tensors = {f"lora_unet_X.lora_{side}.weight": torch.ones(2, 2) for side in ("down", "up")}
    save_file({**tensors, extra: torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=says):
        with_loras(tiny("sd"), [LoraFile(tmp_path / "lora.safetensors")])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("image_proj.proj.weight", "is an IP-Adapter instead of a LoRA: leave it out"),
        ("emb_params", "is a textual inversion instead of a LoRA"),
        ("control_model.time_embed.0.weight", "is a ControlNet instead of a LoRA"),
        ("down_blocks.0.resnets.0.conv1.weight", "holds no low-rank layers, its first tensor is down_blocks.*: give a"),
        ("base_model.model.mid_block.lora_A.weight", "adapts nothing of this UNet2DConditionModel"),
        ("", "holds no low-rank layers and no tensors: give a LoRA"),
    ],
)
def test_other_files_than_adapters_are_refused_by_name(name: str, says: str, tmp_path: Path):
    save_file({name: torch.ones(2, 2)} if name else {}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=says):
        with_loras(tiny("sd"), [LoraFile(tmp_path / "lora.safetensors")])


def test_headers_that_contradict_the_file_or_the_model_are_refused(tmp_path: Path):
    path, _ = adapter("sd", tmp_path)
    with_header(path, "unet", r=2, lora_alpha=2, init_lora_weights="pissa")
    with pytest.raises(InputError, match="was initialized by pissa, which changes the base weights: convert it to"):
        with_loras(tiny("sd"), [LoraFile(path)])
    save_file({**load_file(path), f"unet.{LAYERS['sd']}.alpha": torch.tensor(1.0)}, path)
    with_header(path, "unet", r=2, lora_alpha=2)
    with pytest.raises(InputError, match="gives its alphas twice, as tensors and in its header"):
        with_loras(tiny("sd"), [LoraFile(path)])

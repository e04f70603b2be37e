"""A LoRA is fused into the weights: the model computes what the adapted one computes and looks like the plain one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.models import lora as module
from dipgo_deploy.models.lora import with_loras
from dipgo_deploy.models.lora_files import LoraFile, lora_from_text
from tests.models.families import tiny

LAYERS = {
    "sd": "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "sdxl": "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "sd3": "transformer_blocks.1.attn.to_v",
    "flux": "single_transformer_blocks.0.attn.to_q",
    "wan": "blocks.1.attn1.to_k",
}
"""By family, a linear layer that the test adapts."""


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed: pip install 'dipgo-deploy[lora]'")


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


@pytest.mark.parametrize("name", LAYERS)
def test_the_weights_take_up_the_change(name: str, tmp_path: Path, peft):
    plain, (path, change) = tiny(name), adapter(name, tmp_path)
    fused = with_loras(tiny(name), [LoraFile(path, 0.5)])
    before, after = plain.module.state_dict(), fused.module.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        expected = tensor + 0.5 * change if key == f"{LAYERS[name]}.weight" else tensor
        assert torch.allclose(after[key], expected, atol=1e-6), key
    assert fused.digest != plain.digest and fused.digest == with_loras(tiny(name), [LoraFile(path, 0.5)]).digest
    assert not any(parameter.requires_grad for parameter in fused.module.parameters())


def test_two_adapters_add_up(tmp_path: Path, peft):
    (first, one), (second, two) = adapter("sd", tmp_path / "a"), adapter("sd", tmp_path / "b", rank=3)
    fused = with_loras(tiny("sd"), [LoraFile(first), LoraFile(second, -1.0)])
    weight = f"{LAYERS['sd']}.weight"
    expected = tiny("sd").module.state_dict()[weight] + one - two
    assert torch.allclose(fused.module.state_dict()[weight], expected, atol=1e-6)


def test_kohyas_names_and_alphas_are_read(tmp_path: Path, peft):
    layer = tiny("sd").module.get_submodule(LAYERS["sd"])
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    prefix = "lora_unet_" + LAYERS["sd"].replace(".", "_")
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    save_file({f"{prefix}.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    fused = with_loras(tiny("sd"), [LoraFile(tmp_path / "lora.safetensors")])
    weight = f"{LAYERS['sd']}.weight"
    expected = tiny("sd").module.state_dict()[weight] + 0.5 * up @ down
    assert torch.allclose(fused.module.state_dict()[weight], expected, atol=1e-6)


def test_a_part_for_text_encoders_that_are_not_there_is_left_out_and_said(tmp_path: Path, peft):
    path, _ = adapter("sd", tmp_path, extra="text_encoder.text_model.encoder.layers.0.self_attn.q_proj")
    says = "also adapts text_encoder, which this UNet2DConditionModel lacks: that part is ignored"
    with pytest.warns(UserWarning, match=says):
        assert not with_loras(tiny("sd"), [LoraFile(path)]).text_loras


def test_a_lora_of_another_model_is_refused(tmp_path: Path, peft):
    path, _ = adapter("sd3", tmp_path)
    with pytest.raises(InputError, match="adapts nothing of this UNet2DConditionModel: use a LoRA that was made for"):
        with_loras(tiny("sd"), [LoraFile(path)])
    with pytest.raises(InputError, match="cannot be fused into this FluxTransformer2DModel .*: use its own"):
        with_loras(tiny("flux"), [LoraFile(path)])


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path, peft):
    (tmp_path / "lora.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be fused into this UNet2DConditionModel"):
        with_loras(tiny("sd"), [LoraFile(tmp_path / "lora.safetensors")])
    with pytest.raises(InputError, match="does not exist: check the path"):
        with_loras(tiny("sd"), [LoraFile(tmp_path / "other.safetensors")])


@pytest.mark.parametrize("damage", ["another layer", "another size", "not finite", "absent", "too large"])
def test_what_cannot_be_fused_leaves_the_module_as_it_was(damage: str, tmp_path: Path, peft):
    (good, _), (bad, _) = adapter("sd", tmp_path / "a"), adapter("sd", tmp_path / "b")
    prefix = f"unet.{LAYERS['sd']}.lora_A.weight"
    tensors, scale = load_file(bad), 1.0
    if damage == "another layer":
        tensors = {name.replace("to_q", "to_none"): tensor for name, tensor in tensors.items()}
    elif damage == "another size":
        tensors[prefix] = torch.randn(2, tensors[prefix].shape[1] + 1)
    elif damage == "not finite":
        tensors[prefix][0, 0] = torch.nan
    elif damage == "too large":
        scale = 1e300
    save_file(tensors, bad)
    if damage == "absent":
        bad.unlink()
    model, plain = tiny("sd"), tiny("sd").module.state_dict()
    with pytest.raises(InputError, match="b/lora.safetensors"):
        with_loras(model, [LoraFile(good), LoraFile(bad, scale)])
    after = model.module.state_dict()
    assert after.keys() == plain.keys() and all(torch.equal(after[name], plain[name]) for name in plain)


def test_without_peft_it_says_what_is_missing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"needs peft, which is not installed: pip install 'dipgo-deploy\[lora\]'"):
        with_loras(tiny("sd"), [LoraFile(tmp_path / "lora.safetensors")])


def test_a_class_without_adapters_is_refused(tmp_path: Path):
    with pytest.raises(
        UsageError, match="a LoRA for DiTTransformer2DModel cannot be read, only those for UNet2DConditionModel"
    ):
        with_loras(tiny("dit"), [LoraFile(tmp_path / "lora.safetensors")])


def test_no_lora_leaves_the_model_alone():
    model = tiny("dit")
    assert with_loras(model, []) is model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", LoraFile(Path("a.safetensors"))),
        ("a.safetensors:0.5", LoraFile(Path("a.safetensors"), 0.5)),
        ("a:b/c.safetensors:-1", LoraFile(Path("a:b/c.safetensors"), -1.0)),
        ("a:b/c.safetensors", LoraFile(Path("a:b/c.safetensors"))),
    ],
)
def test_files_and_scales_are_read(text: str, expected: LoraFile):
    assert lora_from_text(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.safetensors:much", "the scale 'much' is not a number: give FILE or FILE:SCALE"),
        ("a.safetensors:inf", "the scale 'inf' is not a number"),
        ("a.bin", "a.bin is not a .safetensors file: convert it"),
        ("a.pt:0.5", "is not a .safetensors file"),
    ],
)
def test_other_formats_and_odd_scales_are_refused(text: str, says: str):
    with pytest.raises(UsageError, match=says):
        lora_from_text(text)

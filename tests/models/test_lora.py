"""A LoRA is fused into the weights: the model computes what the adapted one computes and looks like the plain one."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dipgo_deploy.core.errors import InputError, MissingError, UsageError
from dipgo_deploy.models import lora as module
from dipgo_deploy.models.lora import with_loras
from dipgo_deploy.models.lora_files import LoraFile
from tests.models.families import tiny
from tests.models.loras import LAYERS, adapter, fused_by_diffusers, largest_difference, with_header


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="peft is not installed: pip install 'dipgo-deploy[lora]'")


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


@pytest.mark.parametrize("name", LAYERS)
def test_an_alpha_that_only_the_header_tells_counts(name: str, tmp_path: Path, peft):
    path, change = adapter(name, tmp_path, rank=4)
    with_header(path, tiny(name).component, r=4, lora_alpha=16, target_modules=[LAYERS[name]])
    fused = with_loras(tiny(name), [LoraFile(path, 0.5)]).module.state_dict()
    assert largest_difference(fused, fused_by_diffusers(name, path, 0.5)) == 0
    weight = f"{LAYERS[name]}.weight"
    assert torch.allclose(fused[weight], tiny(name).module.state_dict()[weight] + 2 * change, atol=1e-5)


@pytest.mark.parametrize("kind", ["rslora", "patterns", "dora", "bias", "half", "convolution"])
def test_what_peft_can_save_is_fused_as_by_diffusers(kind: str, tmp_path: Path, peft):
    layer = LAYERS["sd"].replace("to_q", "to_out.0")
    module = tiny("sd").module.get_submodule(layer)
    (path, _), generator = adapter("sd", tmp_path, rank=4), torch.Generator().manual_seed(1)
    tensors, header = load_file(path), {"r": 4, "lora_alpha": 6, "target_modules": [LAYERS["sd"], layer]}
    tensors[f"unet.{layer}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator)
    tensors[f"unet.{layer}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator)
    header["rank_pattern"] = {layer: 2}
    if kind == "rslora":
        header["use_rslora"] = True
    elif kind == "patterns":
        header["alpha_pattern"] = {layer: 5}
    elif kind == "dora":
        header["use_dora"] = True
        for name in (LAYERS["sd"], layer):
            tensors[f"unet.{name}.lora_magnitude_vector"] = torch.rand(module.out_features, generator=generator)
    elif kind == "bias":
        tensors = {name: tensor for name, tensor in tensors.items() if layer in name}
        header |= {"lora_bias": True, "target_modules": [layer]}
        tensors[f"unet.{layer}.lora_B.bias"] = torch.randn(module.out_features, generator=generator)
    elif kind == "half":
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
    elif kind == "convolution":
        channels = tiny("sd").module.conv_in.out_channels
        tensors["unet.conv_in.lora_A.weight"] = torch.randn(4, 4, 3, 3, generator=generator)
        tensors["unet.conv_in.lora_B.weight"] = torch.randn(channels, 4, 1, 1, generator=generator)
    save_file(tensors, path)
    with_header(path, "unet", **header)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = with_loras(tiny("sd"), [LoraFile(path)]).module.state_dict()
    assert largest_difference(fused, fused_by_diffusers("sd", path)) == 0
    assert largest_difference(fused, tiny("sd").module.state_dict()) > 1e-2


def test_layers_that_the_model_lacks_are_counted(tmp_path: Path, peft):
    path, _ = adapter("sd", tmp_path)
    tensors = load_file(path)
    for index in range(9):
        for side in ("A", "B"):
            name = f"unet.{LAYERS['sd']}.lora_{side}.weight"
            tensors[name.replace("mid_block", f"mid_block{index}")] = tensors[name].clone()
    save_file(tensors, path)
    says = "adapts 10 layers, 9 of which this UNet2DConditionModel lacks, such as unet.mid_block0.*: these are left out"
    with pytest.warns(UserWarning, match=says):
        fused = with_loras(tiny("sd"), [LoraFile(path)]).module.state_dict()
    assert largest_difference(fused, fused_by_diffusers("sd", path)) == 0
    save_file({name: tensor for name, tensor in tensors.items() if "mid_block." not in name}, path)
    with pytest.raises(InputError, match="adapts 9 layers, none of which this UNet2DConditionModel has, such as"):
        with_loras(tiny("sd"), [LoraFile(path)])


def test_a_control_lora_of_flux_is_refused(tmp_path: Path, peft):
    width = tiny("flux").module.x_embedder.in_features
    tensors = {"lora_A": torch.ones(2, 2 * width), "lora_B": torch.ones(tiny("flux").module.x_embedder.out_features, 2)}
    save_file({f"transformer.x_embedder.{k}.weight": v for k, v in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="widens x_embedder from 16 to 32 inputs, so it is a Control LoRA: fuse it in"):
        with_loras(tiny("flux"), [LoraFile(tmp_path / "lora.safetensors")])


def test_the_model_itself_stays_as_it_is(tmp_path: Path, peft):
    path, _ = adapter("sd", tmp_path)
    model, plain = tiny("sd"), tiny("sd")
    fused = with_loras(model, [LoraFile(path)])
    assert largest_difference(model.module.state_dict(), plain.module.state_dict()) == 0
    assert fused.module.conv_in.weight.data_ptr() == model.module.conv_in.weight.data_ptr()
    assert {type(part).__name__ for part in fused.module.modules()} == {
        type(part).__name__ for part in model.module.modules()
    }
    assert vars(fused.module).keys() == vars(model.module).keys()


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


def test_text_encoders_that_diffusers_does_not_adapt_are_left_out_and_said(tmp_path: Path, peft):
    path, _ = adapter("sd3", tmp_path, extra="text_encoder_3.encoder.block.0.layer.0.SelfAttention.q")
    entry = ["transformers", "T5EncoderModel"]
    (tmp_path / "model_index.json").write_text(json.dumps({"text_encoder_3": entry}))
    model = replace(tiny("sd3"), folder=tmp_path)
    with pytest.warns(UserWarning, match="also adapts text_encoder_3, for which diffusers reads no LoRA: that part is"):
        assert not with_loras(model, [LoraFile(path)]).text_loras


def test_shapes_without_weights_take_no_lora(tmp_path: Path, peft):
    path, _ = adapter("sd", tmp_path)
    model = tiny("sd")
    with pytest.raises(UsageError, match="was loaded without weights, a LoRA needs them: load them too"):
        with_loras(replace(model, module=model.module.to("meta")), [LoraFile(path)])


def test_behaviour_of_the_module_is_kept_or_refused(tmp_path: Path, peft):
    path, _ = adapter("sd", tmp_path)
    model = tiny("sd")
    model.module.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert with_loras(model, [LoraFile(path)]).behaviour.entries == model.behaviour.entries != {}
    original = model.module.forward
    model.module.forward = lambda *args, **kwargs: original(*args, **kwargs)
    with pytest.raises(
        UsageError, match="cannot take a LoRA, for .* refers to the module itself: fuse the LoRA before"
    ):
        with_loras(model, [LoraFile(path)])


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

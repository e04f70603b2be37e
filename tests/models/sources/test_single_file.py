"""Checkpoints under their original names: loaded by diffusers' conversion, on configs that are at hand."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models import load_model, load_random, make_contract, read_random_config
from dipgo_deploy.models.sources.module import model_from_module
from dipgo_deploy.models.sources.prediction import is_sd2_base
from dipgo_deploy.models.sources.safetensors_header import read_header
from tests.models.families import FAMILIES, flux
from tests.models.sources.original_names import flux_from_diffusers, ldm_from_diffusers


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No config may be fetched."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def sd15() -> nn.Module:
    """As many blocks and layers as Stable Diffusion 1.5 has, and few channels."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8, 8, 8), norm_num_groups=2, cross_attention_dim=6, attention_head_dim=2
    )


def sdxl() -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES["sdxl"][0]()


def save(module: nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    """A checkpoint, and beside it the config of its denoiser."""
    module.save_config(folder)
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("build", [sd15, sdxl])
def test_a_unet_under_latent_diffusions_names(build, tmp_path: Path) -> None:
    module = build()
    state = ldm_from_diffusers(module.state_dict(), module.config.layers_per_block)
    others = {"first_stage_model.encoder.conv_in.weight": torch.zeros(2, 3), "alphas_cumprod": torch.zeros(5)}
    path = save(module, {**state, **others}, tmp_path)
    loaded = load_model(path, config=str(tmp_path / "config.json"))
    assert loaded.digest == model_from_module(module).digest and loaded.component == "unet"


def test_flux_under_its_first_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = flux()
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    # The conversion knows the published model's width alone.
    constants = tuple(32 if constant == 3072 else constant for constant in convert.__code__.co_consts)
    monkeypatch.setattr(convert, "__code__", convert.__code__.replace(co_consts=constants))
    path = save(module, flux_from_diffusers(module.state_dict()), tmp_path)
    loaded = load_model(path, config=str(tmp_path / "config.json"))
    wanted = module.state_dict()
    found = loaded.module.state_dict()
    assert isinstance(loaded.module, FluxTransformer2DModel) and loaded.component == "transformer"
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


KINDS = {
    "sd15": {},
    "sd21": {},
    "sdxl": {"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (4,)},
    "flux-dev": {},
    "flux-schnell": {},
}
"""Shipped configs, and tensors outside the denoiser by which diffusers recognizes their checkpoints."""


def shapes_file(path: Path, shapes: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    """A file with tensors of these shapes in half precision. All numbers are holes in the file."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return path


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def published() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """The shapes of a shipped config's checkpoint under its original names."""

    @cache
    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        model = load_random(name, device="meta")
        state = model.module.state_dict()
        if name.startswith("flux"):
            return shapes_of(flux_from_diffusers(state))
        return {**shapes_of(ldm_from_diffusers(state, model.config["layers_per_block"])), **KINDS.get(name, {})}

    return shapes


@pytest.mark.parametrize("name", KINDS)
def test_names_and_shapes_tell_which_shipped_config_is_meant(name: str, published, tmp_path: Path) -> None:
    """With the original names and with those of diffusers."""
    original = shapes_file(tmp_path / "model.safetensors", published(name))
    expected = load_random(name, device="meta")
    assert load_model(original, meta=True).digest == expected.digest
    if name != "sdxl":
        return
    converted = shapes_file(tmp_path / "unet.safetensors", shapes_of(expected.module.state_dict()))
    assert load_model(converted, meta=True).digest == expected.digest


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unet.mid_block.attn1.to_q.lora_A.weight", "is a LoRA: give the model that it was made for, and this file as"),
        ("lora_unet_mid_block_attn1_to_q.lora_down.weight", "is a LoRA"),
        ("decoder.conv_in.weight", "is a VAE: give a denoiser"),
        ("first_stage_model.decoder.conv_in.weight", "is a VAE"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "is a text encoder"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "is a text encoder"),
        ("control_model.time_embed.0.weight", "is a ControlNet"),
        ("image_proj.proj.weight", "is an IP-Adapter"),
        ("emb_params", "is a textual inversion"),
        ("anything.else", "is of an unknown kind, its first tensor is anything.else: give a folder or config"),
        ("", "holds no tensors: give a checkpoint"),
    ],
)
def test_files_of_something_else_are_refused_by_name(name: str, says: str, meta: bool, tmp_path: Path) -> None:
    save_file({name: torch.zeros(2, 2)} if name else {}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=says):
        load_model(tmp_path / "model.safetensors", meta=meta)


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "wan", "sd3"])
def test_a_small_model_is_never_taken_for_a_published_one(name: str, tmp_path: Path) -> None:
    """Under diffusers' names, and under the original names where the tests can write them."""
    module = FAMILIES[name][0]()
    path = save(module, module.state_dict(), tmp_path)
    with pytest.raises(InputError, match="its sizes not those of .*: give its config.json as config"):
        load_model(path, meta=True)
    assert load_model(path, config=str(tmp_path), meta=True).weight_bytes == model_from_module(module).weight_bytes
    if name == "sd":
        save_file(ldm_from_diffusers(sd15().state_dict(), 2), path)
        with pytest.raises(InputError, match=r"conv_in.weight is \(4, 4, 3, 3\) instead of \(320, 4, 3, 3\)"):
            load_model(path, meta=True)


def test_a_config_does_not_make_a_denoiser_of_another_file(tmp_path: Path) -> None:
    for name, says in (
        ("decoder.conv_in.weight", "is a VAE"),
        ("anything.else", "cannot be loaded as .*lacks weights"),
    ):
        save_file({name: torch.zeros(2, 2)}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=says):
            load_model(tmp_path / "model.safetensors", config="sd15", meta=True)


def test_a_file_with_diffusers_names_gets_the_scheduler_of_its_kind(tmp_path: Path) -> None:
    for name, published in (("flux", "flux-dev"), ("sd3", "sd3-medium"), ("wan", "wan2.1-1.3b"), ("sdxl", "sdxl")):
        path = save(FAMILIES[name][0](), FAMILIES[name][0]().state_dict(), tmp_path / name)
        model = load_model(path, config=str(tmp_path / name), meta=True)
        assert model.scheduler_config == read_random_config(published).scheduler
        assert read_random_config(published).title in model.assumptions[0]


def sdxl_file(folder: Path, *markers: str, **metadata: str) -> Path:
    """A tiny SDXL under its original names, with empty tensors as markers, and its config beside it."""
    module = sdxl()
    state = ldm_from_diffusers(module.state_dict(), module.config.layers_per_block)
    state["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"] = torch.zeros(4)
    state |= {name: torch.zeros(0) for name in markers}
    module.save_config(folder)
    save_file(state, folder / "model.safetensors", metadata)
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("markers", "metadata", "prediction", "zero_snr"),
    [
        ((), {}, "epsilon", None),
        (("v_pred",), {}, "v_prediction", None),
        (("v_pred", "ztsnr"), {}, "v_prediction", True),
        ((), {"modelspec.prediction_type": "v"}, "v_prediction", None),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon", None),
    ],
)
def test_markers_in_a_file_choose_the_prediction(markers, metadata, prediction, zero_snr, tmp_path: Path) -> None:
    model = load_model(sdxl_file(tmp_path, *markers, **metadata), config=str(tmp_path))
    published = dict(read_random_config("sdxl").scheduler or {})
    expected = {**published, "prediction_type": prediction}
    assert model.scheduler_config == (expected | {"rescale_betas_zero_snr": True} if zero_snr else expected)
    assert model.digest == model_from_module(sdxl()).digest
    (assumption,) = model.assumptions
    assert f"EulerDiscreteScheduler with {prediction}" in assumption and "--config" in assumption
    assert ("zero terminal SNR" in assumption) is bool(zero_snr)
    assert make_contract(model, steps=2).sampler.config_dict["prediction_type"] == prediction


def test_a_scheduler_in_the_users_own_config_is_followed(tmp_path: Path) -> None:
    path = sdxl_file(tmp_path, "v_pred")
    denoiser = json.loads((tmp_path / "config.json").read_text())
    own = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}
    (tmp_path / "own.json").write_text(json.dumps({"denoiser": denoiser, "scheduler": own}))
    model = load_model(path, config=str(tmp_path / "own.json"))
    assert model.scheduler_config == own
    assert model.assumptions == (
        "model.safetensors is marked for v_prediction by the tensor v_pred, but its --config says epsilon",
    )


@pytest.mark.parametrize(("marker", "title"), [("edm_mean", "Playground v2.5"), ("edm_vpred.sigma_max", "CosXL")])
def test_another_noise_schedule_is_refused_by_name(marker: str, title: str, tmp_path: Path) -> None:
    path = sdxl_file(tmp_path, marker)
    with pytest.raises(InputError, match=f"is marked for the noise schedule EDM .{marker}, as {title}"):
        load_model(path, config=str(tmp_path))


@pytest.mark.parametrize(
    ("metadata", "config", "says"),
    [
        ({}, "sd21", "give --config sd21-base"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "sd21-base", "epsilon as in Stable Diffusion 2.1 base"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "sd21", "told by modelspec.architecture"),
    ],
)
def test_what_is_assumed_of_stable_diffusion_2_is_said(metadata, config, says, published, tmp_path: Path) -> None:
    path = shapes_file(tmp_path / "model.safetensors", published("sd21"), **metadata)
    model = load_model(path, meta=True)
    assert model.scheduler_config == read_random_config(config).scheduler
    assert model.config["sample_size"] == read_random_config(config).denoiser["sample_size"]
    assert says in model.assumptions[0]
    base = load_model(path, config="sd21-base", meta=True)
    assert base.scheduler_config["prediction_type"] == ("v_prediction" if "768" in str(metadata) else "epsilon")


def test_the_step_marks_the_base_model_of_stable_diffusion_2(tmp_path: Path) -> None:
    save_file({"global_step": torch.tensor(875000)}, tmp_path / "step.safetensors")
    assert is_sd2_base(tmp_path / "step.safetensors", read_header(tmp_path / "step.safetensors"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("double_blocks.0.img_attn.qkv.scale_weight", "quantised by scaled float8, told by double_blocks"),
        ("scaled_fp8", "scaled float8"),
        ("double_blocks.0.img_attn.qkv.weight_scale", "scaled float8"),
        ("double_blocks.0.img_attn.qkv.weight.absmax", "bitsandbytes in 4 bits"),
        ("double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4", "bitsandbytes in 4 bits"),
        ("double_blocks.0.img_attn.qkv.SCB", "bitsandbytes in 8 bits"),
        ("transformer_blocks.0.qkv_proj.wscales", "SVDQuant"),
        ("blocks.0.qweight", "GPTQ or AWQ"),
        ("blocks.0.weight._data", "quanto"),
    ],
)
def test_quantised_weights_are_refused_by_the_name_of_the_method(name: str, says: str, tmp_path: Path) -> None:
    tensors = {"double_blocks.0.img_attn.qkv.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), name: torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    for meta in (True, False):
        with pytest.raises(InputError, match=f"{says}.*: give the model with its unquantised weights"):
            load_model(tmp_path / "model.safetensors", config="flux-dev", meta=meta)


def test_integers_and_foreign_formats_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(4, 4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="holds a.weight as I8, which is quantised: give the model with its"):
        load_model(tmp_path / "model.safetensors")
    for suffix, says in ((".gguf", "is a GGUF file"), (".onnx", "is an ONNX graph"), (".msgpack", "of Flax weights")):
        (tmp_path / f"model{suffix}").write_bytes(b"GGUF")
        with pytest.raises(InputError, match=says):
            load_model(tmp_path / f"model{suffix}")


def test_float8_without_scales_is_cast_as_diffusers_casts(tmp_path: Path) -> None:
    module = sd15()
    state = ldm_from_diffusers(module.state_dict(), module.config.layers_per_block)
    path = save(module, {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}, tmp_path)
    theirs = UNet2DConditionModel.from_single_file(str(path), config=str(tmp_path), torch_dtype=torch.float32)
    ours = load_model(path, config=str(tmp_path)).module.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.state_dict().items())


def test_a_checkpoint_that_lacks_a_weight_or_is_of_another_size(tmp_path: Path) -> None:
    module = sd15()
    state = ldm_from_diffusers(module.state_dict(), module.config.layers_per_block)
    path = save(module, state, tmp_path)
    with pytest.raises(InputError, match=r"model.safetensors cannot be loaded as UNet2DConditionModel.*as config"):
        load_model(path)  # its keys are those of Stable Diffusion 1.5, its sizes are not
    state.pop("model.diffusion_model.middle_block.1.proj_in.weight")
    path = save(module, state, tmp_path)
    with pytest.raises(InputError, match="it lacks weights that the config requires.: give its config"):
        load_model(path, config=str(tmp_path / "config.json"))


def test_a_checkpoint_of_another_kind(tmp_path: Path) -> None:
    save_file({"edm_mean": torch.zeros(4)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is a checkpoint of playground-v2-5, known are v1, v2.*: give a folder or"):
        load_model(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="diffusers cannot load a UNet2DModel from a single file: give its folder"):
        load_model(tmp_path / "model.safetensors", config="ddpm-cifar10-32")

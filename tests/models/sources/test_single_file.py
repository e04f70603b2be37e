"""Checkpoints under their original names: loaded by diffusers' conversion, on configs that are at hand."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models import load_model
from dipgo_deploy.models.sources.module import model_from_module
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


@pytest.mark.parametrize(
    ("key", "shape", "class_name", "parameters"),
    [
        ("model.diffusion_model.output_blocks.11.0.skip_connection.weight", (4, 4), "UNet2DConditionModel", 860),
        (
            "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight",
            (1, 1024), "UNet2DConditionModel", 866,
        ),
        ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", (4,), "UNet2DConditionModel", 2567),
        ("double_blocks.0.img_attn.norm.key_norm.scale", (4,), "FluxTransformer2DModel", 11891),
    ],
)  # fmt: skip
def test_the_keys_tell_which_shipped_config_is_meant(key, shape, class_name, parameters, tmp_path: Path) -> None:
    save_file({key: torch.zeros(shape)}, tmp_path / "model.safetensors")
    shapes = load_model(tmp_path / "model.safetensors", meta=True)
    count = sum(parameter.numel() for parameter in shapes.module.parameters()) / 1e6
    assert shapes.class_name == class_name and count == pytest.approx(parameters, abs=1)


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

"""Dtypes in half precision are those of diffusers, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dipgo_deploy.models import load_model, load_random, make_contract
from dipgo_deploy.models.cast import cast_in_place, keeps_float32, network_dtype
from dipgo_deploy.supernet.network import GuidedNetwork
from tests.models.families import tiny


def dtypes(module: nn.Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in (*module.state_dict().items(), *module.named_buffers())}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["wan", "dit", "sd3"])
def test_a_folder_is_loaded_with_diffusers_dtypes(name: str, dtype: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.module.save_pretrained(tmp_path)
    theirs = type(model.module).from_pretrained(tmp_path, torch_dtype=getattr(torch, dtype))
    ours = load_model(tmp_path, dtype=dtype)
    assert dtypes(ours.module) == dtypes(theirs) == dtypes(model.as_dtype(dtype).module)
    wanted = theirs.state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in ours.module.state_dict().items())
    assert ours.digest == model.as_dtype(dtype).digest
    assert set(dtypes(model.module).values()) == {torch.float32}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_random_weights_and_single_files_keep_the_same_modules(dtype: str, tmp_path: Path) -> None:
    model = tiny("wan")
    model.module.save_pretrained(tmp_path)
    expected = dtypes(model.as_dtype(dtype).module)
    state = {name: expected[name] for name in model.module.state_dict()}
    random = dtypes(load_random(tmp_path, dtype=dtype).module)
    file = load_model(tmp_path / "diffusion_pytorch_model.safetensors", config=str(tmp_path), dtype=dtype)
    assert {name: random[name] for name in state} == state and dtypes(file.module) == expected
    assert file.digest == load_model(tmp_path, dtype=dtype).digest


def test_a_network_computes_in_the_requested_dtype() -> None:
    """The first parameter of Wan is one of those that stay in float32."""
    model = tiny("wan").as_dtype("float16")
    assert next(model.module.parameters()).dtype == torch.float32
    assert network_dtype(model.module) == torch.float16 and keeps_float32(type(model.module), torch.float16)
    contract = make_contract(model, steps=2)
    rows = {
        name: tensor for name, tensor in model.example_inputs(1).items() if name not in ("hidden_states", "timestep")
    }
    network = GuidedNetwork(model, contract, {name: torch.cat([rows[name]] * 2) for name in rows}, 2.0)
    assert network.rows_of(torch.zeros(1, *model.latent_shape)).dtype == torch.float16
    assert model.forward(**model.example_inputs(1)).isfinite().all()


def test_casting_back_makes_every_tensor_float32() -> None:
    module = cast_in_place(tiny("wan").module, torch.float16)
    parameters = dict(module.named_parameters())
    assert set(dtypes(cast_in_place(module, torch.float32)).values()) == {torch.float32}
    assert all(parameters[name] is parameter for name, parameter in module.named_parameters())
    assert set(dtypes(tiny("wan").as_dtype("float64").module).values()) == {torch.float64}

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models import PRESETS, load_model, make_contract, model_from_module, patterns_for
from dipgo_deploy.models.sources import REFERENCE_MODELS


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_reference_models_load_by_name_and_as_folders(name: str, tmp_path: Path) -> None:
    by_name = load_model(name)
    assert by_name.folder is not None
    copy = shutil.copytree(by_name.folder, tmp_path / "copy")
    assert load_model(copy).digest == by_name.digest
    bare = load_model(copy / by_name.component)
    assert bare.digest == by_name.digest and bare.component == by_name.component


def test_conditioning_puts_unconditional_rows_first(digits_dit, digits_unet) -> None:
    labels = digits_dit.conditioning([3, 7], "concat")["class_labels"]
    assert labels.tolist() == [10, 10, 3, 7]
    tokens = digits_unet.conditioning([3, 7], "concat")["encoder_hidden_states"]
    single = digits_unet.conditioning([7], "none")["encoder_hidden_states"]
    assert np.array_equal(tokens[0], tokens[1]) and np.array_equal(tokens[3], single[0])
    with pytest.raises(UsageError, match="between 0 and 9, got \\[11\\]"):
        digits_unet.conditioning([11], "none")


def test_conditioning_of_bfloat16_is_float32(digits_unet) -> None:
    brief, whole = (digits_unet.as_dtype(dtype).conditioning([7], "none") for dtype in ("bfloat16", "float32"))
    tokens = brief["encoder_hidden_states"]
    assert tokens.dtype == np.float32 and np.abs(tokens - whole["encoder_hidden_states"]).max() < 0.05


def test_dtype_changes_a_copy_and_the_digest(digits_dit) -> None:
    half = digits_dit.as_dtype("float16")
    assert next(half.module.parameters()).dtype == torch.float16
    assert next(digits_dit.module.parameters()).dtype == torch.float32
    pairs = zip(digits_dit.module.parameters(), half.module.parameters(), strict=True)
    assert all(torch.equal(one.half(), other) and other.data_ptr() != one.data_ptr() for one, other in pairs)
    # Buffers outside the state dict keep their dtype, as in diffusers.
    assert {buffer.dtype for name, buffer in half.module.named_buffers() if name not in half.module.state_dict()} == {
        torch.float32
    }
    assert half.digest != digits_dit.digest
    assert half.example_inputs(2)["timestep"].dtype == torch.float32
    with pytest.raises(UsageError, match="dtype 'int4' is unknown"):
        load_model("digits-dit", dtype="int4")


def test_folders_without_a_model(tmp_path: Path, digits_unet) -> None:
    with pytest.raises(InputError, match="there is no model 'nowhere': give a diffusers folder or one of digits-unet"):
        load_model("nowhere")
    with pytest.raises(InputError, match="neither model_index.json nor config.json"):
        load_model(tmp_path)
    copy = shutil.copytree(digits_unet.folder, tmp_path / "copy")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be loaded as UNet2DConditionModel"):
        load_model(copy)
    (copy / "unet" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(InputError, match="holds a AutoencoderKL, supported are"):
        load_model(copy)
    (copy / "model_index.json").write_text('{"vae": ["diffusers", "AutoencoderKL"]}')
    with pytest.raises(InputError, match="names neither unet nor transformer: give a diffusion pipeline"):
        load_model(copy)
    (copy / "model_index.json").write_text('{"decoder": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(InputError, match="names neither unet nor transformer: give the .* folder .*decoder"):
        load_model(copy)


def test_a_module_without_preset_needs_one() -> None:
    with pytest.raises(InputError, match="Linear is not a supported denoiser"):
        model_from_module(nn.Linear(2, 2))


def test_granularities_are_listed_where_one_is_missing() -> None:
    with pytest.raises(
        UsageError, match="no granularity 'layer': choose stage or branch, or give block patterns as blocks"
    ):
        patterns_for("DiTTransformer2DModel", PRESETS["DiTTransformer2DModel"], "layer")


def test_contract_records_sampler_model_and_versions(digits_unet) -> None:
    contract = make_contract(digits_unet, sampler="pndm", steps=10, guidance="concat")
    assert contract.sampler.calls == 11 and contract.rows_per_image == 2
    assert contract.model_digest == digits_unet.digest and "diffusers" in contract.versions
    assert contract.sampler.config_dict["beta_schedule"] == digits_unet.scheduler_config["beta_schedule"]
    with pytest.raises(UsageError):
        make_contract(digits_unet, sampler="magic")


def test_example_inputs_are_always_the_same_and_leave_the_random_state_alone(digits_unet):
    before = torch.get_rng_state()
    first, second = digits_unet.example_inputs(2), digits_unet.example_inputs(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["sample"].std() > 0 and torch.equal(before, torch.get_rng_state())

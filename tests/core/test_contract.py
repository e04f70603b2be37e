"""Contracts are compared field by field, and installed versions are recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dipgo_deploy.core.contract import Contract, SamplerSpec, check_same_contract, installed_versions
from dipgo_deploy.core.errors import InputError
from tests.search.graphs import contract_of, unet_like


def test_contracts_are_compared_field_by_field():
    contract = contract_of(unet_like(1), 5)
    check_same_contract(
        contract, replace(contract, versions={"torch": "1"}, batch=replace(contract.batch, max=3)), "the file"
    )
    others = {
        "model_class": ("Other", "model_class Other, expected UNet2DConditionModel: make it again"),
        "model_digest": ("e" * 64, "model_digest eeeeeeeeeeee, expected dddddddddddd"),
        "dtype": ("float16", "dtype float16, expected float32"),
        "guidance": ("concat", "guidance concat, expected none"),
        "latent_shape": ((1, 2, 3), r"latent_shape \(1, 2, 3\), expected \(4, 8, 8\)"),
        "sampler": (replace(contract.sampler, config='{"a": 1}'), "DDIMScheduler with 5 calls .* make it again"),
    }
    for name, (value, message) in others.items():
        with pytest.raises(InputError, match=f"the schedule was made for .*{message}"):
            check_same_contract(contract, replace(contract, **{name: value}), "the schedule")


@pytest.mark.parametrize(("guidance", "rows"), [("none", 3), ("concat", 6)])
def test_guidance_doubles_the_rows_of_a_batch(guidance, rows):
    contract = Contract("M", "0", "float32", SamplerSpec("S", "{}", 1, (1.0,)), guidance, (1, 2, 2))
    assert contract.sizes(3) == {"batch": 3, "rows": rows}


@pytest.mark.parametrize(("guidance", "scale"), [("none", 1.0), ("concat", 2.0)])
def test_the_guidance_scale_has_a_default(guidance, scale):
    contract = contract_of(unet_like(1), 5, guidance)
    assert (contract.guidance_scale(None), contract.guidance_scale(7.5)) == (scale, 7.5)


def test_packages_that_are_not_installed_are_left_out():
    assert list(installed_versions(["numpy", "no-such-distribution"])) == ["numpy"]

"""Shape, batch, conditioning and guidance of calls against the contract."""

from __future__ import annotations

import pytest
import torch

from dipgo_deploy.core.contract import BatchRange, Contract, Guidance, SamplerSpec
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.pipeline.calls import NetworkCall, RefusedCall
from dipgo_deploy.pipeline.checks import CallCheck

INPUTS = (
    TensorSpec("sample", ("rows", 4, 8, 8), "float32"),
    TensorSpec("timestep", ("rows",), "float32"),
    TensorSpec("text", ("rows", 7, 12), "float32"),
)


def check(guidance: Guidance) -> CallCheck:
    sampler = SamplerSpec("DDIMScheduler", "{}", 1, (1.0,))
    contract = Contract("UNet2DModel", "d", "float32", sampler, guidance, (4, 8, 8), BatchRange(1, 1, 3))
    return CallCheck(contract, INPUTS)


def call(rows: int, shape=(4, 8, 8), text=(7, 12), doubled=False) -> NetworkCall:
    latent = torch.randn(rows // 2 if doubled else rows, *shape)
    latent = torch.cat([latent, latent]) if doubled else latent
    return NetworkCall(latent, 1.0, 0.0, {"text": torch.randn(rows, *text)}, lambda tensor: tensor, True)


def test_calls_inside_the_contract_pass():
    assert check("none").check(call(3)).batch == 3 and check("concat").check(call(6, doubled=True)).batch == 3
    check("none").check_guidance(call(3), first=False)
    check("concat").check_guidance(call(6, doubled=True), first=False)


@pytest.mark.parametrize(
    ("guidance", "network_call", "message"),
    [
        ("none", call(1, shape=(4, 16, 8)), r"latents of shape \(4, 8, 8\), got \(4, 16, 8\): set height and width"),
        ("none", call(4), "takes 1 to 3 images, got 4"),
        ("concat", call(8, doubled=True), "takes 1 to 3 images, got 4"),
        ("none", call(2, text=(9, 12)), r"text must have shape \(2, 7, 12\), got \(2, 9, 12\)"),
        ("concat", call(3), "made for guidance 'concat' .*, got an odd number of rows: set a guidance_scale above 1"),
    ],
)
def test_shapes_and_rows_outside_the_contract_are_refused(guidance, network_call, message):
    with pytest.raises(RefusedCall, match=message):
        check(guidance).check(network_call)


def test_rows_without_guidance_are_refused_where_it_is_wanted():
    with pytest.raises(RefusedCall, match="guidance 'concat' .*, got two halves of rows with different latents"):
        check("concat").check_guidance(call(2), first=True)


def test_guidance_where_none_is_wanted_shows_at_the_second_step():
    doubled = call(2, doubled=True)
    check("none").check_guidance(doubled, first=True)
    with pytest.raises(RefusedCall, match="guidance 'none', got every latent twice, .*: set guidance_scale=1"):
        check("none").check_guidance(doubled, first=False)


def test_two_images_of_one_seed_and_one_prompt_are_no_guidance():
    doubled = call(2, doubled=True)
    same = NetworkCall(doubled.latent, 1.0, 0.0, {"text": torch.ones(2, 7, 12)}, doubled.as_returned, True)
    check("none").check_guidance(same, first=False)

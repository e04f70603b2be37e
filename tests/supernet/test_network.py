"""Rows of guidance and several calls in one."""

from __future__ import annotations

import pytest
import torch

from dipgo_deploy.supernet.network import GuidedNetwork
from tests.supernet.chains import Tiny, contract


@pytest.mark.parametrize("guidance", ["none", "concat"])
def test_many_calls_in_one_are_each_what_they_are_alone(guidance) -> None:
    network = GuidedNetwork(Tiny(), contract(guidance), {}, 3.0)
    latents = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    together = network.many(list(latents), [900.0, 500.0, 1.0])
    assert network.model.module.calls == 1 and len(together) == 3
    for latent, time, found in zip(latents, [900.0, 500.0, 1.0], together, strict=True):
        assert len(found) == (4 if guidance == "concat" else 2)
        assert (network(latent, time) - found).abs().max() < 1e-12


def test_the_sampler_sees_guided_rows_and_no_learned_sigma() -> None:
    network = GuidedNetwork(Tiny(), contract("concat"), {}, 3.0)
    rows = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unconditional, conditional = rows[:2, :4], rows[2:, :4]
    assert torch.equal(network.guided(rows), unconditional + 3.0 * (conditional - unconditional))


def test_conditioning_takes_the_dtype_of_the_network_and_labels_stay_whole() -> None:
    network = GuidedNetwork(Tiny(), contract(), {"tokens": torch.ones(1), "labels": torch.tensor([3])}, 1.0)
    assert network.dtype == network.sampler_dtype == torch.float64
    assert {name: t.dtype for name, t in network._conditioning.items()} == {
        "tokens": torch.float64, "labels": torch.int64,
    }  # fmt: skip

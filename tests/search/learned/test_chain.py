"""The chain: equal to its sampler, true gradients, recomputing that changes nothing, plain samplers as starts."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from dipgo_deploy.core.learned_sampler import Combination, LearnedSampler
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.models import make_contract, sampler_spec
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.search.fit.search import learned_spec
from dipgo_deploy.search.fit.teacher import Images, run_teacher
from dipgo_deploy.search.learned.chain import LearnedChain
from dipgo_deploy.search.learned.losses import log_mse
from dipgo_deploy.search.learned.plain_start import sampler_of_plain, with_inputs

START = LearnedSampler(
    timesteps=(900.0, 500.0, 150.0),
    states=(
        Combination(1.1, 0.0, (-0.3,)),
        Combination(1.2, 0.0, (-0.5, 0.1)),
        Combination(1.3, 0.0, (-0.6, 0.1, 0.02)),
    ),
)


@pytest.fixture(scope="module")
def images(digits_unet) -> Images:
    contract = make_contract(digits_unet, guidance="concat")
    return Images(digits_unet, contract, (1, 2), (3, 4), 2.0)


def chain_of(images: Images, start: LearnedSampler = START, **options) -> LearnedChain:
    return LearnedChain(start, images.network(), images.noise, **options)


def test_a_chain_draws_what_its_sampler_draws_in_a_scheduler(images) -> None:
    start = LearnedSampler(
        START.timesteps, START.states,
        (Combination(1.0), Combination(0.9, 0.05, (0.1,)), Combination(1.0, 0.0, (0.02, -0.01))), initial_scale=1.1,
    )  # fmt: skip
    chain = chain_of(images, start)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
        drawn = chain(images.network(), images.noise)
    sampler = chain.sampler()
    assert sampler != start and sampler.grid == start.timesteps
    torch.testing.assert_close(run_teacher(images, learned_spec(sampler, images))[-1], drawn, rtol=0, atol=2e-5)


def test_gradients_are_those_of_differences_with_and_without_recomputing(images, digits_unet) -> None:
    wide = Images(digits_unet.copied("float64"), images.contract, images.seeds, images.labels, 2.0)
    target = torch.zeros(1)
    gradients = []
    for recompute in (False, True):
        chain = chain_of(wide, recompute=recompute)
        log_mse(chain(wide.network(), wide.noise), target).backward()
        gradients.append([parameter.grad.clone() for parameter in chain.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    chain = chain_of(wide)

    def loss() -> float:
        with torch.no_grad():
            return float(log_mse(chain(wide.network(), wide.noise), target))

    for parameter, gradient in zip(chain.parameters(), gradients[0], strict=True):
        # The network takes its time in float32, so differences of times are coarse.
        size, share = (1e-3, 5e-2) if parameter is chain.times else (1e-5, 1e-3)
        for place in range(len(parameter)):
            with torch.no_grad():
                parameter[place] += size
                above = loss()
                parameter[place] -= 2 * size
                below = loss()
                parameter[place] += size
            expected = (above - below) / (2 * size)
            assert float(gradient[place]) == pytest.approx(expected, rel=share, abs=share * float(gradient.abs().max()))


def test_inputs_can_move_apart_from_states_that_forget(images) -> None:
    short = replace(START, states=tuple(replace(row, outputs=row.outputs[:1]) for row in START.states))
    assert with_inputs(START, 3) is START and with_inputs(short, 1).inputs[2] == Combination(1.0, 0.0, (0.0,))
    chain, before = chain_of(images, with_inputs(short, 1)), chain_of(images, short)
    drawn = chain(images.network(), images.noise)
    torch.testing.assert_close(drawn, before(images.network(), images.noise), rtol=0, atol=1e-6)
    drawn.sum().backward()
    assert [len(numbers) for numbers in chain.inputs] == [1, 2, 2] and chain.inputs[2].grad.abs().max() > 0


def test_times_stay_in_order_and_in_range(images) -> None:
    chain = chain_of(images)
    with torch.no_grad():
        chain.times.copy_(torch.tensor([2.0, 2.0, -3.0], dtype=torch.float64))
    chain.keep_order(999.0, 0.0)
    first, second, third = chain.network_times().tolist()
    assert first == 999.0 and 998.0 < second < first and third == 0.0
    chain.sampler()


def test_a_context_surrounds_every_call_also_when_it_is_recomputed(images) -> None:
    calls = []

    @contextmanager
    def context(call: int):
        calls.append(call)
        yield

    chain = chain_of(images, recompute=True, context=context)
    chain(images.network(), images.noise).sum().backward()
    assert calls[:6] == [0, 1, 2, 0, 1, 2] and sorted(calls[6:]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unipc", {}),
        ("dpmpp-2m", {"use_karras_sigmas": True}),
        ("euler", {}),
        ("ddim", {"timestep_spacing": "leading"}),
    ],
)
def test_plain_samplers_are_starts(images, name, options) -> None:
    spec = sampler_spec(name, 6, images.model.scheduler_config, options)
    reading = read_sampler(spec)
    assert isinstance(reading, LinearSampler)
    start = sampler_of_plain(reading, spec.timesteps, 6)
    assert start is not None and [len(row.outputs) for row in start.states] == [1, 2, 3, 4, 5, 6]
    plain, own = run_teacher(images, spec)[-1], run_teacher(images, learned_spec(start, images))[-1]
    assert np.abs((plain - own).numpy()).max() < 1e-4
    assert sampler_of_plain(reading, (5.0, 5.0, *spec.timesteps[2:]), 6) is None
    if name == "unipc":
        assert sampler_of_plain(reading, spec.timesteps, 1) is None

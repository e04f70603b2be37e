"""Costs of holding against what holding really does: exactly on a linear network, to first order on a true one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dipgo_deploy.core.sampler import LinearSampler, Update
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models import make_contract
from dipgo_deploy.models.sampler_coefficients import next_latent, read_sampler
from dipgo_deploy.search.calibration import calibrate
from dipgo_deploy.search.evaluator import Evaluator
from dipgo_deploy.search.sensitivity import FullRun, holding_costs, random_probes, record_full_run

STEPS, BATCH, SHAPE = 5, 3, (1, 2, 2)
RNG = np.random.default_rng(0)


class LinearNetwork:
    """A matrix times the latent, times the timestep."""

    matrix = torch.as_tensor(RNG.standard_normal((4, 4)))

    def __call__(self, latent: torch.Tensor, timestep: float) -> torch.Tensor:
        return (latent.flatten(1) @ self.matrix * timestep).reshape(latent.shape)

    def guided(self, prediction: torch.Tensor) -> torch.Tensor:
        return prediction


def sampler_of(memory: int) -> LinearSampler:
    """Any coefficients, with ``memory`` latents and outputs."""
    draw = RNG.uniform(0.5, 1.0, (STEPS, 2, memory)).tolist()
    updates = [Update(tuple(a[: i + 1]), tuple(b[: i + 1])) for i, (a, b) in enumerate(draw)]
    return LinearSampler(1.0, tuple(RNG.uniform(0.5, 1.0, STEPS)), tuple(updates))


def simulate(sampler: LinearSampler, noise: torch.Tensor, hold: range = range(0)) -> tuple[list, list]:
    """Latents and outputs where the steps in ``hold`` take the output of the step before the first of them."""
    network, latents, outputs = LinearNetwork(), [noise], []
    for step in range(STEPS):
        scaled = latents[-1] * sampler.input_scales[step]
        outputs.append(outputs[hold[0] - 1] if step in hold else network(scaled, 1.0 + step))
        latents.append(next_latent(sampler.updates[step], latents, outputs))
    return latents, outputs


@pytest.mark.parametrize("memory", [1, 2, 3])
def test_on_a_linear_network_the_costs_are_the_errors_of_the_image(memory: int) -> None:
    """With unit vectors as probes nothing is left to chance."""
    sampler, noise = sampler_of(memory), torch.as_tensor(RNG.standard_normal((BATCH, *SHAPE)))
    latents, outputs = simulate(sampler, noise)
    times = tuple(1.0 + step for step in range(STEPS))
    run = FullRun(LinearNetwork(), times, tuple(latents[:-1]), tuple(outputs))  # type: ignore[arg-type]
    probes = torch.eye(4, dtype=torch.float64).reshape(4, 1, *SHAPE).expand(4, BATCH, *SHAPE)
    columns = list(holding_costs(run, sampler, probes))
    assert len(columns) == STEPS
    for end, column in zip(range(STEPS, 0, -1), columns, strict=True):
        for start in range(end):
            held, _ = simulate(sampler, noise, range(start + 1, end))
            assert column[start] == pytest.approx(float(((held[-1] - latents[-1]) ** 2).mean()), rel=1e-9)
        assert (column[end - 1 :] == 0).all()


def test_random_probes_measure_mean_squares_and_are_settled_by_their_seed() -> None:
    run = FullRun(LinearNetwork(), (), (torch.zeros(2, 3, 4, 4),), ())  # type: ignore[arg-type]
    probes, difference = random_probes(run, 4000, seed=1), torch.randn(2, 3, 4, 4, generator=torch.manual_seed(0))
    found = ((probes * difference).flatten(2).sum(2) ** 2).mean(0)
    assert found.numpy() == pytest.approx((difference**2).flatten(1).mean(1).numpy(), rel=0.1)
    assert torch.equal(probes, random_probes(run, 4000, seed=1))
    assert not torch.equal(probes, random_probes(run, 4000, seed=2))


@pytest.mark.parametrize(
    ("name", "guidance"), [pytest.param("ddim", "none", marks=pytest.mark.slow), ("dpmpp-2m", "concat")]
)
def test_costs_estimate_what_holding_one_step_does_to_digits(digits_unet, traced, name: str, guidance) -> None:
    """One image and 32 probes leave a quarter of noise, and ten steps are not quite infinitesimal."""
    graph = traced("digits-unet", "stage").blocks
    contract = make_contract(digits_unet, sampler=name, steps=10, guidance=guidance)
    calibration = calibrate(digits_unet, graph, contract, range(1))
    sampler = read_sampler(contract.sampler)
    assert isinstance(sampler, LinearSampler)
    full = full_schedule(contract, graph.granularity, "output", graph.block_names)
    run = record_full_run(calibration, full, sampler)
    for step in (0, 5, 8):
        found = next_latent(sampler.updates[step], run.latents[: step + 1], run.outputs[: step + 1])
        assert torch.allclose(found, run.latents[step + 1], atol=1e-4)
    columns = list(holding_costs(run, sampler, random_probes(run, 32, seed=0)))[::-1]
    evaluator, shares = Evaluator(calibration, graph, "output"), []
    for held in range(2, 9):
        computed = [step if index != held else frozenset() for index, step in enumerate(full.computed)]
        shares.append(columns[held][held - 1] / (4 / 10 ** (evaluator.score(computed) / 10)))
    assert 0.7 < np.median(shares) < 1.4 and 1 / 3 < min(shares) and max(shares) < 3

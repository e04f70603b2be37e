"""All steps under gates: hard ones are the reference bit for bit, and every gradient is the finite difference's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.calibration import calibrate
from dipgo_deploy.search.candidate import schedule_from_sets
from dipgo_deploy.search.cost import GateCost, Pricer
from dipgo_deploy.search.dipgo.threshold import sets_of
from dipgo_deploy.supernet.chain import SoftChain
from dipgo_deploy.supernet.rollout import reference_trajectory
from tests.supernet.chains import GRAPH, LAST, STEPS, Tiny, contract, loss_of, run, soft_chain

CASES = [
    ("digits-unet", "stage", "output", "ddim", "none"),
    ("digits-unet", "stage", "output", "dpmpp-2m", "concat"),
    ("digits-dit", "branch", "residual", "ddim", "concat"),
    ("digits-dit", "branch", "residual", "unipc", "none"),
]


def hard(shape: tuple[int, int], seed: int, share: float = 0.5) -> np.ndarray:
    mask = np.random.default_rng(seed).random(shape) < share
    mask[0] = True
    return mask


def names_of(mask: np.ndarray, names: tuple[str, ...]) -> list[frozenset[str]]:
    return [frozenset(name for name, on in zip(names, row, strict=True) if on) for row in mask.tolist()]


@pytest.mark.parametrize(("name", "granularity", "kind", "sampler", "guidance"), CASES)
def test_hard_gates_are_the_reference_bit_for_bit(
    reference_model, traced, name, granularity, kind, sampler, guidance
) -> None:
    model, graph = reference_model(name), traced(name, granularity).blocks
    at = make_contract(model, steps=5, sampler=sampler, guidance=guidance)
    data = calibrate(model, graph, at, range(2))
    chain = SoftChain(model, graph, at, kind, "none")
    cost = GateCost(Pricer(graph, kind), graph)
    mask = hard((5, len(graph.blocks)), 1)
    mask[:, -1] = [True, False, True, False, True]
    for live, computed in (
        (None, names_of(mask, graph.block_names)),
        (cost.alive(mask), sets_of(mask, graph, cost.pricer)),
    ):
        schedule = schedule_from_sets(graph, at, kind, computed)
        given = {"guidance_scale": data.guidance_scale, "seed": 0}
        *_, last = reference_trajectory(model, schedule, data.noise, data.conditioning, **given)
        gates = torch.tensor(mask, dtype=torch.float32).requires_grad_()
        found = chain.run(
            gates, data.noise, data.conditioning, live=None if live is None else torch.tensor(live), **given
        )
        assert torch.equal(found.image.detach(), last.latent)
        assert [closed.step for closed in found.closed] == ([] if live is None else [1, 3])


@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize("sampler", ["ddim", "unipc"])
def test_gradients_of_soft_gates_are_finite_differences(kind, sampler) -> None:
    chain = soft_chain(kind, sampler=sampler)
    gates = torch.as_tensor(np.random.default_rng(2).uniform(0.2, 0.8, (STEPS, len(GRAPH.blocks))))
    live = torch.tensor(hard(gates.shape, 3, 0.8))
    check_gradient(chain, gates, live)


@pytest.mark.parametrize("kind", ["output", "residual"])
def test_gradients_of_hard_gates_are_finite_differences(kind) -> None:
    gates = torch.tensor(hard((STEPS, len(GRAPH.blocks)), 4), dtype=torch.float64)
    check_gradient(soft_chain(kind), gates, torch.ones(gates.shape, dtype=torch.bool))


def check_gradient(chain: SoftChain, gates: torch.Tensor, live: torch.Tensor, step: float = 1e-5) -> None:
    watched = gates.clone().requires_grad_()
    loss_of(run(chain, watched, live)).backward()
    assert (watched.grad[0] == 0).all()
    largest = float(watched.grad.abs().max())
    for index in np.ndindex(*gates.shape):
        if index[0] > 0:
            assert abs(float(watched.grad[index]) - slope(chain, gates, live, index, step)) < 1e-7 * largest


@torch.no_grad()
def slope(chain: SoftChain, gates: torch.Tensor, live: torch.Tensor, index: tuple[int, ...], step: float) -> float:
    values = []
    for moved in (step, -step):
        other = gates.clone()
        other[index] += moved
        values.append(float(loss_of(run(chain, other, live))))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize(("name", "granularity", "kind"), [c[:3] for c in CASES[1:3]])
def test_recomputation_changes_nothing(reference_model, traced, name, granularity, kind) -> None:
    model, graph = reference_model(name), traced(name, granularity).blocks
    at = make_contract(model, steps=4, guidance="concat")
    data, found = calibrate(model, graph, at, range(1)), {}
    start = torch.as_tensor(np.random.default_rng(5).random((4, len(graph.blocks))), dtype=torch.float32)
    for recompute in ("none", "step", "block"):
        gates = start.clone().requires_grad_()
        chain = SoftChain(model, graph, at, kind, recompute)
        image = chain.run(gates, data.noise, data.conditioning, guidance_scale=2.0).image
        image.square().mean().backward()
        found[recompute] = image.detach(), gates.grad
        assert all("forward" not in module.__dict__ for module in model.module.modules())
    for recompute in ("step", "block"):
        for ours, plain in zip(found[recompute], found["none"], strict=True):
            assert (ours - plain).abs().max() <= 1e-6 * plain.abs().max()


@pytest.mark.parametrize("recompute", ["none", "step", "block"])
def test_the_model_is_itself_after_an_exception(recompute) -> None:
    chain = soft_chain(recompute=recompute)
    block = chain.model.module.transformer_blocks[1]
    gates = torch.full((STEPS, len(GRAPH.blocks)), 0.5, dtype=torch.float64).requires_grad_()
    before, calls = run(chain, gates).image.detach(), []

    def fails(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    handle = block.mix.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(chain, gates)
    handle.remove()
    assert all("forward" not in module.__dict__ for module in chain.model.module.modules())
    assert torch.equal(run(chain, gates).image.detach(), before)


def test_a_network_that_writes_to_its_features_in_place_is_held_as_it_was() -> None:
    mask = np.ones((STEPS, len(GRAPH.blocks)), dtype=bool)
    mask[1:3, 2] = mask[4, 2] = False
    for kind in ("output", "residual"):
        images = []
        for in_place in (False, True):
            chain = SoftChain(Tiny(in_place), GRAPH, contract(), kind, "none")
            images.append(run(chain, torch.tensor(mask, dtype=torch.float64)).image)
        assert torch.equal(*images)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("recompute", ["none", "step"])
def test_the_gradient_of_a_closed_step_is_the_one_sided_derivative(recompute, rows) -> None:
    """Two closed steps in a row after a partial one, and one at the end: none of them calls the network."""
    gates = torch.ones(STEPS + 1, len(GRAPH.blocks), dtype=torch.float64)
    live = torch.ones(gates.shape, dtype=torch.bool)
    closed = [2, 3, 5]
    gates[1, 1], gates[closed], live[closed, :LAST] = 0, 0, False
    chain = SoftChain(Tiny(), GRAPH, contract(steps=STEPS + 1), "residual", recompute)
    watched = gates.clone().requires_grad_()
    trajectory = run(chain, watched, live)
    assert chain.model.module.calls == 3
    loss_of(trajectory).backward()
    gradients = trajectory.closed_gradients(rows)
    assert list(gradients) == closed and (watched.grad[closed] == 0).all()
    with torch.no_grad():
        before = float(loss_of(run(chain, gates, live)))
        for step in closed:
            near = gates.clone()
            near[step], near[step, LAST] = 1, 1e-6
            assert gradients[step] == pytest.approx((float(loss_of(run(chain, near, live))) - before) / 1e-6, rel=1e-4)


def test_a_closed_step_right_after_the_first_has_a_gradient_too() -> None:
    gates, live = torch.zeros(2, len(GRAPH.blocks)), torch.zeros(2, len(GRAPH.blocks), dtype=torch.bool)
    chain = SoftChain(Tiny(), GRAPH, contract(steps=2), "output", "none")
    trajectory = run(chain, gates.requires_grad_(), live)
    loss_of(trajectory).backward()
    assert trajectory.closed_gradients()[1] != 0.0


def test_refusals() -> None:
    with pytest.raises(UsageError, match="checkpoint 'some' is unknown: choose none, step, block"):
        soft_chain(recompute="some")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"gates must have the shape \(5, 4\) \(steps, blocks\), got \(4, 4\)"):
        run(soft_chain(), torch.ones(4, 4))

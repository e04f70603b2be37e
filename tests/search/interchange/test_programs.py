"""Programs of imported schedules draw what caching on the live transformer draws, written out plainly here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, make_contract, scheduler_from_spec
from dipgo_deploy.runtime import open_session
from dipgo_deploy.search.interchange import import_schedule
from tests.models.families import tiny

STEPS, SCALE = 6, 2.5
LISTS = {"attn1": [1, 0, 1, 0, 0, 1], "ff": [1, 1, 0, 0, 1, 0], "ff-2": [1, 0, 0, 0, 0, 0]}
MASK = [1, 0, 0, 1, 0, 0]


@contextmanager
def layers_cached(model: LoadedModel, lists: Mapping[str, list[int]]) -> Iterator[list[int]]:
    """SmoothCache: a layer whose list holds 0 returns its last output. Yields a clock that the loop winds."""
    clock, own = [0], {}
    for i, block in enumerate(model.module.transformer_blocks):
        for part in ("attn1", "ff"):
            module, bits = getattr(block, part), lists.get(f"{part}-{i}", lists.get(part))
            own[module] = module.forward
            module.forward = _cached(module.forward, clock, bits or [1] * STEPS)
    try:
        yield clock
    finally:
        for module, forward in own.items():
            module.forward = forward


def _cached(forward: Callable, clock: list[int], bits: list[int]) -> Callable:
    kept: list[torch.Tensor] = []

    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        if bits[clock[0]]:
            kept[:] = [forward(*args, **kwargs)]
        return kept[0]

    return run


@contextmanager
def middle_cached(model: LoadedModel, mask: list[int], first: int, last: int) -> Iterator[list[int]]:
    """cache-dit: the blocks between the first and the last add what they added at the last full step."""
    clock, blocks, kept = [0], model.module.transformer_blocks, {}
    middle = list(blocks)[first : len(blocks) - last]
    own = {block: block.forward for block in middle}

    def enter(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if mask[clock[0]]:
            kept["input"] = hidden
            return own[middle[0]](hidden, *args, **kwargs)
        return hidden + kept["sum"]

    def inner(block: torch.nn.Module) -> Callable:
        return lambda hidden, *a, **k: own[block](hidden, *a, **k) if mask[clock[0]] else hidden

    def leave(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = inner(middle[-1])(hidden, *args, **kwargs)
        if mask[clock[0]]:
            kept["sum"] = output - kept["input"]
        return output

    for block in middle[1:-1]:
        block.forward = inner(block)
    middle[0].forward, middle[-1].forward = enter, leave
    try:
        yield clock
    finally:
        for block, forward in own.items():
            block.forward = forward


@torch.no_grad()
def drawn(model: LoadedModel, contract: Any, clock: list[int], noise: np.ndarray) -> np.ndarray:
    """The sampler's loop on the live model with concatenated guidance, as DiT's pipeline runs it."""
    scheduler, latent = scheduler_from_spec(contract.sampler), torch.as_tensor(noise)
    given = {name: torch.as_tensor(rows) for name, rows in model.conditioning([1], "concat").items()}
    for step, timestep in enumerate(scheduler.timesteps):
        clock[0] = step
        rows = torch.cat([scheduler.scale_model_input(latent, timestep)] * 2)
        output = model.forward(hidden_states=rows, timestep=timestep.expand(2).float(), **given)
        without, with_class = output[:, : latent.shape[1]].chunk(2)
        guided = without + SCALE * (with_class - without)
        latent = scheduler.step(guided, timestep, latent).prev_sample
    return latent.numpy()


CASES = {
    "smoothcache": (LISTS, lambda model: layers_cached(model, LISTS)),
    "fora": ({"interval": 3}, lambda model: layers_cached(model, {"attn1": MASK, "ff": MASK})),
    "cache-dit": (
        {"steps_computation_mask": MASK, "steps_computation_policy": "static", "Fn_compute_blocks": 1},
        lambda model: middle_cached(model, MASK, 1, 0),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_program_draws_what_the_live_model_draws_with_a_cache(name: str, trace_cache: Path, tmp_path: Path) -> None:
    document, caching = CASES[name]
    model = tiny("dit")
    granularity = "stage" if name == "cache-dit" else "branch"
    with FileLock(trace_cache / f"dit-{granularity}.lock"):
        graph = trace(model, granularity=granularity).blocks
    contract = make_contract(model, steps=STEPS, guidance="concat")
    schedule = import_schedule(name, document, graph, contract)
    noise = np.random.default_rng(0).standard_normal((1, *model.latent_shape)).astype(np.float32)
    plain = drawn(model, contract, [0], noise)
    with caching(model) as clock:
        wanted = drawn(model, contract, clock, noise)
    assert np.abs(wanted - plain).max() > 1e-3 * np.abs(plain).max(), "the cache changes the image"
    session = open_session(load_bundle(export(model, schedule, tmp_path / "bundle")), 1, guidance_scale=SCALE)
    ours = session.run(noise, model.conditioning([1], "concat"))
    assert np.abs(ours - wanted).max() <= 1e-4 * np.abs(wanted).max()

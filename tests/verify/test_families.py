"""The ladder holds for a tiny model of every family, at every granularity: whole bundles, both layouts, any batch."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.verify import VerifyOptions
from tests.models.families import FAMILIES, tiny

CELLS = [
    (name, granularity, kind)
    for name in FAMILIES
    for granularity in tiny(name).preset.granularities
    for kind in ("output", "residual")
    if granularity == "branch" or kind == "output"
]
"""Residuals are tried where every family has some: on branches."""

FLOW = ("sd3", "flux", "wan")
"""Families whose networks predict a velocity; theirs is a sampler of flow matching."""

model_of = cache(tiny)


@pytest.mark.parametrize(("name", "granularity", "kind"), CELLS)
def test_every_rung_holds(trace_cache: Path, name: str, granularity: str, kind: str, tmp_path: Path) -> None:
    model = model_of(name)
    with FileLock(trace_cache / f"{name}-{granularity}.lock"):
        graph = trace(model, granularity=granularity).blocks
    sampler = "flow-euler" if name in FLOW else "ddim"
    contract = make_contract(model, sampler=sampler, steps=5, guidance="none" if name == "flux" else "concat")
    schedule = random_schedule(graph, contract, kind, np.random.default_rng(1), 0.6)
    bundle = load_bundle(export(model, schedule, tmp_path / "bundle", ExportOptions("segments")))
    report = verify(bundle, VerifyOptions(images=3))
    assert report.passed, report.failure
    assert len(report.rungs) == 4 and all(rung.free <= 1e-3 for rung in report.rungs)
    loaded, own = bundle.model.example_inputs(2), model.example_inputs(2)
    assert {name: given.shape for name, given in loaded.items()} == {name: given.shape for name, given in own.items()}
    noise = np.random.default_rng(0).standard_normal((3, *model.latent_shape)).astype(np.float32)
    given, scale = model.conditioning([0, 1, 2], contract.guidance), contract.guidance_scale(None)
    three = bundle.session(3, guidance_scale=scale).run(noise, given)
    first = {n: v.reshape(-1, 3, *v.shape[1:])[:, :1].reshape(-1, *v.shape[1:]) for n, v in given.items()}
    one = bundle.session(1, guidance_scale=scale).run(noise[:1], first)
    assert np.abs(three[:1] - one).max() <= 1e-4 * np.abs(one).max()

"""The ladder holds for a tiny model of every family: whole bundles in both layouts, and images of any batch size.

Nine cells with every family, granularity and kind always run. The other cells are slow tests.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import make_contract
from dipgo_deploy.runtime import open_session
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.verify import VerifyOptions, verify_bundle
from tests.models.families import FAMILIES, tiny

CELLS = [
    (name, granularity, kind)
    for name in FAMILIES
    for granularity in tiny(name).preset.granularities
    for kind in ("output", "residual")
    if granularity == "branch" or kind == "output"
]
"""Residuals are tried on branches, where every family has some."""

ALWAYS = (
    ("sd", "branch", "residual"),
    ("sdxl", "stage", "output"),
    ("ddpm", "layer", "output"),
    ("dit", "branch", "residual"),
    ("pixart-alpha", "branch", "output"),
    ("pixart-sigma", "stage", "output"),
    ("sd3", "branch", "residual"),
    ("flux", "stage", "output"),
    ("wan", "stage", "output"),
)
"""tests/pipeline/test_families.py traces the same models at the same granularities, so that both share the traces."""

PARAMETERS = [pytest.param(*cell, marks=[] if cell in ALWAYS else pytest.mark.slow) for cell in CELLS]

FLOW = ("sd3", "flux", "wan")
"""Families whose networks predict a velocity. They need a sampler of flow matching."""

model_of = cache(tiny)


def test_the_cells_that_always_run_hold_every_family_and_granularity() -> None:
    assert set(ALWAYS) <= set(CELLS)
    for position in range(3):
        assert {cell[position] for cell in ALWAYS} == {cell[position] for cell in CELLS}


@pytest.mark.parametrize(("name", "granularity", "kind"), PARAMETERS)
def test_every_rung_holds(trace_cache: Path, name: str, granularity: str, kind: str, tmp_path: Path) -> None:
    model = model_of(name)
    with FileLock(trace_cache / f"{name}-{granularity}.lock"):
        graph = trace(model, granularity=granularity).blocks
    sampler = "flow-euler" if name in FLOW else "ddim"
    contract = make_contract(model, sampler=sampler, steps=5, guidance="none" if name == "flux" else "concat")
    schedule = random_schedule(graph, contract, kind, np.random.default_rng(1), 0.6)
    bundle = load_bundle(export(model, schedule, tmp_path / "bundle", ExportOptions("segments")))
    report = verify_bundle(bundle, VerifyOptions(images=3))
    assert report.passed, report.failure
    assert len(report.rungs) == 4 and all(rung.free <= 1e-3 for rung in report.rungs)
    loaded, original = bundle.model.example_inputs(2), model.example_inputs(2)
    assert {key: tensor.shape for key, tensor in loaded.items()} == {key: t.shape for key, t in original.items()}
    noise = np.random.default_rng(0).standard_normal((3, *model.latent_shape)).astype(np.float32)
    conditioning, scale = model.conditioning([0, 1, 2], contract.guidance), contract.guidance_scale(None)
    three = open_session(bundle, 3, guidance_scale=scale).run(noise, conditioning)
    first = {n: v.reshape(-1, 3, *v.shape[1:])[:, :1].reshape(-1, *v.shape[1:]) for n, v in conditioning.items()}
    single = open_session(bundle, 1, guidance_scale=scale).run(noise[:1], first)
    assert np.abs(three[:1] - single).max() <= 1e-4 * np.abs(single).max()

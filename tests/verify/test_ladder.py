"""The ladder holds for random schedules of the digits models: every backend equals the slower one below it.

A cell is a model, granularity, kind, guidance layout and sampler. The bundle has layout segments, and its verification
covers the subnets too. Every pair of two values occurs in a cell that always runs. The other cells are slow tests, and
benchmarks/ladder.py goes further.
"""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.verify import VerifyOptions, verify_bundle

GRANULARITIES = (
    ("digits-unet", "stage"),
    ("digits-unet", "layer"),
    ("digits-unet", "branch"),
    ("digits-dit", "stage"),
    ("digits-dit", "branch"),
)
KINDS = ("output", "residual")
GUIDANCE = ("none", "concat")
SAMPLERS = ("ddim", "unipc", "pndm")
"""They keep 1, 3 and 2 latents and 1, 3 and 4 outputs."""

CELLS = list(product(GRANULARITIES, KINDS, GUIDANCE, SAMPLERS))
PAIRWISE = [
    (granularity, KINDS[(i + j) % 2], GUIDANCE[((j + 1) // 2 + i) % 2], sampler)
    for i, granularity in enumerate(GRANULARITIES)
    for j, sampler in enumerate(SAMPLERS)
]
PARAMETERS = [
    pytest.param(*cell, marks=[] if cell in PAIRWISE else pytest.mark.slow, id="-".join((*cell[0], *cell[1:])))
    for cell in CELLS
]


def test_every_pair_of_values_is_in_a_cell_that_always_runs() -> None:
    for first, second in combinations(range(4), 2):
        assert {(cell[first], cell[second]) for cell in PAIRWISE} == {(cell[first], cell[second]) for cell in CELLS}


@pytest.mark.parametrize(("granularity", "kind", "guidance", "sampler"), PARAMETERS)
def test_every_rung_holds(
    reference_model, traced, granularity: tuple[str, str], kind: str, guidance: str, sampler: str, tmp_path: Path
) -> None:
    name, level = granularity
    model, trace = reference_model(name), traced(name, level)
    contract = make_contract(model, sampler=sampler, steps=6, guidance=guidance)
    schedule = random_schedule(trace.blocks, contract, kind, np.random.default_rng(SAMPLERS.index(sampler)), 0.6)
    folder = export(model, schedule, tmp_path / "bundle", ExportOptions("segments"))
    report = verify_bundle(load_bundle(folder), VerifyOptions(images=2))
    assert report.passed, report.failure
    # A name ends in ", by float64" where the roundings of this processor's float32 exceed a tolerance.
    assert [rung.name.partition(", ")[0] for rung in report.rungs] == [
        "all gates open = plain model",
        "program on torch = reference",
        "onnxruntime subnets = torch",
        "onnxruntime segments = subnets",
    ]
    assert all(rung.free <= 1e-3 for rung in report.rungs)

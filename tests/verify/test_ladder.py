"""The ladder: every fast path equals the slower one below it, in every cell of the table.

One test a cell of model, granularity, kind and guidance; each takes three random schedules of six steps through a
bundle of the segments layout, whose verification covers the subnets layout too. benchmarks/ladder.py is wider.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.verify import VerifyOptions

GRANULARITIES = [
    ("digits-unet", "stage"),
    ("digits-unet", "layer"),
    ("digits-unet", "branch"),
    ("digits-dit", "stage"),
    ("digits-dit", "branch"),
]
SAMPLERS = ("ddim", "unipc", "pndm")
"""One for each of the three schedules of a cell: memories of 1+1, 3+3 and 2+4 latents and outputs."""


@pytest.mark.parametrize("guidance", ["none", "concat"])
@pytest.mark.parametrize("kind", ["output", "residual"])
@pytest.mark.parametrize(("name", "granularity"), GRANULARITIES)
def test_every_rung_holds(
    reference_model, traced, name: str, granularity: str, kind: str, guidance: str, tmp_path: Path
) -> None:
    model, found = reference_model(name), traced(name, granularity)
    for seed, sampler in enumerate(SAMPLERS):
        contract = make_contract(model, sampler=sampler, steps=6, guidance=guidance)
        schedule = random_schedule(found.blocks, contract, kind, np.random.default_rng(seed), 0.6)
        folder = export(model, schedule, tmp_path / sampler, ExportOptions("segments"))
        report = verify(load_bundle(folder), VerifyOptions(images=2))
        assert report.passed, report.failure
        # Where the roundings of this processor's float32 exceed a tolerance, float64 judges, and the name says so.
        assert [rung.name.partition(", ")[0] for rung in report.rungs] == [
            "all gates open = plain model",
            "program on torch = reference",
            "onnxruntime subnets = torch",
            "onnxruntime segments = subnets",
        ]
        assert all(rung.free <= 1e-3 for rung in report.rungs)

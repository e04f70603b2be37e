"""A deployed pipeline makes the images of the PyTorch pipeline under the same schedule, for every family and layout.

The cells that always run hold every way in which pipelines call their denoiser: added conditions, no guidance, class
labels, masks, packed tokens, and two calls per step. test_denoiser.py has the pipeline of ``sd``. The rest is slow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.blocks import Kind
from dipgo_deploy.core.program import Layout
from dipgo_deploy.models import scheduler_from_spec
from dipgo_deploy.pipeline import DeployedDenoiser, call_arguments, load_pipeline
from tests.pipeline.pipelines import FAMILIES, build, drawn, make_bundle
from tests.pipeline.scheduled import scheduled

CELLS = [(name, "segments" if name in ("dit", "flux") else "subnets", "stage", "output") for name in FAMILIES]
CELLS += [(name, "subnets", "branch", "residual") for name in ("dit", "sd3")] + [
    ("pixart", "segments", "branch", "residual"),
    ("ddpm", "subnets", "layer", "output"),
]
ALWAYS = (
    ("sdxl", "subnets", "stage", "output"),
    ("ddpm", "subnets", "layer", "output"),
    ("dit", "subnets", "branch", "residual"),
    ("pixart", "subnets", "stage", "output"),
    ("sd3", "subnets", "branch", "residual"),
    ("flux", "segments", "stage", "output"),
    ("wan", "subnets", "stage", "output"),
)
LENGTHS = {"sdxl": (154,), "pixart": (300, 1), "sd3": (77, 154, 589), "flux": (256,), "wan": (512,)}
"""Other text lengths than the usual one of a bundle, which the same bundle answers."""

PARAMETERS = [pytest.param(*cell, marks=[] if cell in ALWAYS else pytest.mark.slow) for cell in CELLS]


@pytest.mark.parametrize(("name", "layout", "granularity", "kind"), PARAMETERS)
def test_same_images_as_pytorch_under_the_schedule(
    name: str, layout: Layout, granularity: str, kind: Kind, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    pipeline = build(name, tmp_path / "pipeline")
    folder = make_bundle(
        name, tmp_path / "pipeline", tmp_path / "bundle", layout=layout, granularity=granularity, kind=kind
    )
    bundle = load_bundle(folder)
    contract = bundle.contract
    pipeline.scheduler = scheduler_from_spec(contract.sampler)
    module = getattr(pipeline, bundle.manifest.denoiser)
    arguments = {**call_arguments(pipeline, contract), **family.arguments()}
    full = drawn(pipeline, arguments)
    with scheduled(module, bundle.schedule, family.calls_per_step):
        expected = drawn(pipeline, arguments)
    deployed = load_pipeline(folder)
    assert isinstance(getattr(deployed, bundle.manifest.denoiser), DeployedDenoiser)
    images = drawn(deployed, arguments)
    assert images.shape == expected.shape
    assert np.abs(images - expected).max() <= 1e-3 * max(1.0, np.abs(expected).max())
    assert np.abs(full - expected).max() > 1e-2, "the schedule changes nothing, so this test shows nothing"
    assert np.array_equal(drawn(deployed, arguments), images)
    for tokens in LENGTHS.get(name, ()):
        longer = {**call_arguments(pipeline, contract), **family.arguments(tokens)}
        with scheduled(module, bundle.schedule, family.calls_per_step):
            expected = drawn(pipeline, longer)
        difference = np.abs(drawn(deployed, longer) - expected).max()
        assert difference <= 1e-3 * max(1.0, np.abs(expected).max()), f"{tokens} tokens"

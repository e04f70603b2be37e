"""A bundle in memory: what it says of itself, and programs compiled from its master graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.runtime.open import open_session


def test_sessions_refuse_what_the_contract_excludes(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    for batch in (0, 65):
        with pytest.raises(UsageError, match=f"batch must be 1 to 64, as the bundle's contract says, got {batch}"):
            open_session(bundle, batch)
    with pytest.raises(UsageError, match="backend 'abacus' is unknown"):
        RunOptions(backend="abacus")


def test_other_schedules_compile_from_the_bundles_master_graph(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    schedule = bundle.schedule
    full = bundle.compile(full_schedule(schedule.contract, schedule.granularity, schedule.kind, schedule.blocks))
    assert full.program.nfe == 6 and len(full.graphs) == 1
    noise = np.random.default_rng(0).standard_normal((2, 1, 16, 16), dtype=np.float32)
    conditioning = bundle.model.conditioning([1, 2], "concat")
    torch_image, image = (
        open_session(bundle, 2, run, guidance_scale=2.0, compiled=full).run(noise, conditioning)
        for run in (RunOptions("torch"), RunOptions())
    )
    assert np.abs(image - torch_image).max() <= 1e-4 * np.abs(torch_image).max()


def test_a_bundle_says_what_it_is(bundle_folder: Path) -> None:
    text = repr(load_bundle(bundle_folder))
    assert "UNet2DConditionModel, DDIMScheduler" in text and "of 6 calls, layout subnets, float32" in text


def test_everything_is_printed_as_one_short_line(bundle_folder: Path, digits_unet, traced) -> None:
    bundle, trace = load_bundle(bundle_folder), traced("digits-unet", "stage")
    session = open_session(bundle, 1, guidance_scale=2.0)
    parts = [bundle, bundle.schedule, bundle.program, bundle.compiled, bundle.blocks, trace, digits_unet, session]
    texts = [repr(part) for part in parts]
    assert [text for text in texts if "\n" in text or len(text) > 400] == []
    assert all("UNet2DConditionModel" in text for text in texts)

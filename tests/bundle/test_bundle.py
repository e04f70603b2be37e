from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.schedule import full_schedule


def test_sessions_refuse_what_the_contract_excludes(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    with pytest.raises(UsageError, match="batch of 65 is outside the contract's 1 to 64"):
        bundle.session(65)
    with pytest.raises(UsageError, match="backend 'abacus' is unknown"):
        bundle.session(1, backend="abacus")


def test_other_schedules_compile_from_the_bundles_master_graph(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    schedule = bundle.schedule
    full = bundle.compile(full_schedule(schedule.contract, schedule.granularity, schedule.kind, schedule.blocks))
    assert full.program.nfe == 6 and len(full.graphs) == 1
    noise = np.random.default_rng(0).standard_normal((2, 1, 16, 16), dtype=np.float32)
    conditioning = bundle.model.conditioning([1, 2], "concat")
    wanted = bundle.session(2, backend="torch", guidance_scale=2.0, compiled=full).run(noise, conditioning)
    found = bundle.session(2, guidance_scale=2.0, compiled=full).run(noise, conditioning)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()

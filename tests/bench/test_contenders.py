from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dipgo_deploy.bench.contenders import FullNetwork
from dipgo_deploy.bench.entries import Entry, bench_entries
from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.learned_sampler import Combination, LearnedSampler
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models.learned_scheduler import LearnedScheduler
from dipgo_deploy.models.schedulers import own_config, record_scheduler
from dipgo_deploy.runtime.open import open_session

OTHER = SamplerSpec("DDIMScheduler", "{}", 2, (900.0, 300.0))


@pytest.mark.parametrize(("backend", "loads"), [("onnxruntime", False), ("torch", True)])
def test_a_start_counts_the_pytorch_model_only_where_it_runs(bundle_folder: Path, backend: str, loads: bool) -> None:
    bundle = load_bundle(bundle_folder)
    network = FullNetwork(bundle, BenchOptions(batch=1, run=RunOptions(backend, threads=1)))
    contender = network.schedule(Entry("own", bundle, bundle.schedule))
    assert contender.start.first_image_ms is not None and contender.start.first_image_ms > 0
    assert ("model" in vars(bundle)) == loads


def test_a_learned_sampler_is_benched_next_to_the_full_run_that_it_stands_in_for(bundle_folder: Path) -> None:
    bundle = load_bundle(bundle_folder)
    contract, own = bundle.contract, bundle.schedule
    states = (Combination(1.1, 0.0, (-0.3,)), Combination(1.3, 0.0, (-0.5, 0.1)))
    scheduler = LearnedScheduler.of(
        [LearnedSampler((900.0, 300.0), states)], own_config(contract.sampler), {"guidance_range": [2.0, 2.0]},
        contract.sampler,
    )  # fmt: skip
    learned = replace(contract, sampler=record_scheduler(scheduler, 2, {}))
    schedule = full_schedule(learned, own.granularity, own.kind, own.blocks)
    _, entry = bench_entries([bundle], [("learned", schedule)])
    assert entry.compiled is not None and entry.program.nfe == 2
    alone = replace(bundle, manifest=replace(bundle.manifest, contract=learned))
    for folder in (bundle, alone):
        assert FullNetwork(folder, BenchOptions(batch=1)).full().program.contract.sampler == contract.sampler
    with pytest.warns(UserWarning, match="learned for guidance scale 2, the run has 5"):
        open_session(bundle, 1, RunOptions(), guidance_scale=5.0, compiled=entry.compiled)
    with pytest.raises(InputError, match="was made for sampler"):
        bench_entries([bundle], [("other", replace(schedule, contract=replace(learned, sampler=OTHER)))])

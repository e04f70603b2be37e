from __future__ import annotations

from pathlib import Path

import pytest

from dipgo_deploy.bench.contenders import FullNetwork
from dipgo_deploy.bench.entries import Entry
from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.run_options import RunOptions


@pytest.mark.parametrize(("backend", "loads"), [("onnxruntime", False), ("torch", True)])
def test_a_start_counts_the_pytorch_model_only_where_it_runs(bundle_folder: Path, backend: str, loads: bool) -> None:
    bundle = load_bundle(bundle_folder)
    network = FullNetwork(bundle, BenchOptions(batch=1, run=RunOptions(backend, threads=1)))
    contender = network.schedule(Entry("own", bundle, bundle.schedule))
    assert contender.start.first_image_ms is not None and contender.start.first_image_ms > 0
    assert ("model" in vars(bundle)) == loads

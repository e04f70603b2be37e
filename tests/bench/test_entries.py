from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from dipgo_deploy.bench.entries import bench_entries, weight_bytes
from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.schedule import full_schedule


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


def test_bundles_are_named_by_their_folders(bundle, bundle_folder, tmp_path, monkeypatch):
    other = load_bundle(shutil.copytree(bundle_folder, tmp_path / "searched"))
    assert [entry.name for entry in bench_entries([bundle, other])] == [bundle_folder.name, "searched"]
    monkeypatch.chdir(tmp_path / "searched")
    assert bench_entries([load_bundle(".")])[0].name == "searched"


def test_a_schedule_is_compiled_next_to_the_bundles_own(bundle):
    own, compiled = bench_entries([bundle], [("again", bundle.schedule)])
    assert own.program is bundle.program and compiled.compiled is not None
    assert compiled.program.nfe == own.program.nfe and compiled.program.macs == own.program.macs
    assert weight_bytes(bundle, compiled.program) == weight_bytes(bundle)


def test_the_time_grid_is_where_the_prediction_is_computed(bundle):
    (entry,) = bench_entries([bundle])
    timesteps = bundle.schedule.contract.sampler.timesteps
    computed = [t for step, t in enumerate(timesteps) if PREDICTION in bundle.schedule.computed[step]]
    assert entry.time_grid == tuple(computed)
    sampler = replace(bundle.schedule.contract.sampler, timesteps=(9.0, 9.0, 5.0, 5.0, 3.0, 1.0))
    full = bundle.schedule.with_compute([frozenset(bundle.schedule.blocks)] * 6)
    repeated = replace(full, contract=replace(full.contract, sampler=sampler))
    assert replace(entry, schedule=repeated).time_grid == (9.0, 5.0, 3.0, 1.0)


def test_names_that_occur_twice_are_refused(bundle):
    with pytest.raises(UsageError, match="distinct names, but 2 schedules are called .* rename a folder or file"):
        bench_entries([bundle, bundle])
    with pytest.raises(UsageError, match="2 schedules are called 'x'"):
        bench_entries([bundle], [("x", bundle.schedule), ("x", bundle.schedule)])
    with pytest.raises(UsageError, match="the name 'full' is reserved for the full run"):
        bench_entries([bundle], [("full", bundle.schedule)])
    with pytest.raises(UsageError, match="a bench needs at least one bundle"):
        bench_entries([])


def test_another_contract_and_other_blocks_are_refused(bundle):
    contract = bundle.manifest.contract
    other = replace(contract, guidance="none")
    with pytest.raises(InputError, match="schedule x was made for guidance none, expected concat"):
        bench_entries([bundle], [("x", replace(bundle.schedule, contract=other))])
    foreign = replace(bundle, folder=bundle.folder / "b", manifest=replace(bundle.manifest, contract=other))
    with pytest.raises(InputError, match="b was made for guidance none"):
        bench_entries([bundle, foreign])
    layers = full_schedule(contract, "layer", "output", ("conv_in", PREDICTION))
    with pytest.raises(InputError, match="has 2 blocks at granularity layer, but the bundles have granularity stage"):
        bench_entries([bundle], [("layers", layers)])


def test_the_weights_inside_the_graphs_are_those_of_onnx(bundle):
    import onnx

    from dipgo_deploy.graphs.weights import read_layout

    total = 0
    for content in bundle.compiled.graphs.values():
        for tensor in onnx.load_model_from_string(content).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                total += onnx.numpy_helper.to_array(tensor).nbytes
    assert weight_bytes(bundle) == total + sum(length for _, length in read_layout(bundle.weights).values())

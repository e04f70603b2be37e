"""A real bench, tiny, and the document it gives."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from dipgo_deploy.bench import BenchOptions, BenchReport, Progress, bench, table, to_json, write_report
from dipgo_deploy.bench.contenders import FullNetwork
from dipgo_deploy.bench.measure import weight_bytes
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.graphs import export
from dipgo_deploy.models import make_contract
from dipgo_deploy.runtime import load_bundle
from dipgo_deploy.runtime.generate import draw
from dipgo_deploy.search import SearchOptions, search_schedule

OPTIONS = BenchOptions(
    batch=2, repeats=2, images=4, converged_images=2, converged_calls=20, tuning_images=2, threads=1, command="test"
)

ROW = {
    "name": str,
    "kind": str,
    "nfe": int,
    "macs": {"papers": int, "full": int},
    "latency_ms": {"p50": float, "p90": float},
    "speedup": float,
    "efficiency": float,
    "psnr_full_db": {"p10": float, "p50": float},
    "psnr_converged_db": {"p10": float, "p50": float},
    "ssim": {"p10": float, "p50": float},
    "frechet": float,
    "accuracy": float,
}


def shape(value: object) -> object:
    return {key: shape(entry) for key, entry in value.items()} if isinstance(value, dict) else type(value)


@pytest.fixture(scope="module")
def bundle(digits_unet, traced, tmp_path_factory):
    contract = make_contract(digits_unet, steps=6)
    schedule = search_schedule(traced("digits-unet", "stage").blocks, contract, SearchOptions("uniform", 0.5))
    return load_bundle(export(digits_unet, schedule, tmp_path_factory.mktemp("bench") / "bundle"))


@pytest.fixture(scope="module")
def steps(bundle) -> list[Progress | BenchReport]:
    return list(bench(bundle, OPTIONS))


@pytest.fixture(scope="module")
def report(steps) -> BenchReport:
    return steps[-1]


def test_progress_comes_first_and_every_stage_ends(steps):
    assert isinstance(steps[-1], BenchReport)
    last = {step.stage: step for step in steps[:-1]}
    assert {"converged run of 20 calls", "pilot timing", "timing", "drawing with full"} <= last.keys()
    assert all(step.done == step.total for step in last.values())


def test_the_document_has_exactly_the_promised_shape(report):
    document = to_json(report)
    assert list(document) == ["schema_version", "environment", "contract", "rows", "memory", "aa_ratio"]
    assert [shape(row) for row in document["rows"]] == [ROW] * len(report.rows)
    assert shape(document["memory"]) == {"model_weight_bytes": int, "bundle_weight_bytes": int, "slot_bytes": int}
    assert document["environment"]["command"] == "test"
    assert document["environment"]["extractor"] == "digits-classifier"
    json.dumps(document, allow_nan=False)


def test_rows_are_full_schedule_and_every_plain_sampler(report):
    assert [row.kind for row in report.rows[:2]] == ["full", "schedule"]
    full, schedule, *samplers = report.rows
    assert (full.nfe, schedule.nfe) == (6, 3)
    assert {row.name.split("-3 ")[0] for row in samplers if row.nfe == 3} == {"DDIM", "DPM++ 2M", "UniPC"}
    assert all(row.kind == "sampler" for row in samplers)


def test_the_numbers_fit_each_other(report):
    full, schedule, *_ = report.rows
    assert (full.speedup, full.efficiency, full.psnr_full_db["p50"]) == (1.0, 1.0, 120.0)
    assert full.macs.full == 2 * schedule.macs.full
    assert schedule.efficiency == pytest.approx(schedule.speedup / 2)
    assert schedule.psnr_full_db["p10"] <= schedule.psnr_full_db["p50"] < 120.0
    assert report.memory["model_weight_bytes"] <= report.memory["bundle_weight_bytes"]
    assert report.memory["bundle_weight_bytes"] <= 1.01 * report.memory["model_weight_bytes"]


def test_the_weights_inside_the_graphs_are_those_of_onnx(bundle):
    import onnx

    total = 0
    for content in bundle.compiled.graphs.values():
        for tensor in onnx.load_model_from_string(content).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                total += onnx.numpy_helper.to_array(tensor).nbytes
    from dipgo_deploy.graphs.weights import read_layout

    assert weight_bytes(bundle) == total + sum(length for _, length in read_layout(bundle.weights).values())


def test_the_table_names_every_row_in_160_columns(report):
    console = Console(width=160, record=True, file=StringIO())
    console.print(table(report))
    text = console.export_text()
    assert all(row.name in text for row in report.rows) and "A/A" in text


def test_the_report_is_written_as_its_document(report, tmp_path: Path):
    write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == to_json(report)


def test_without_a_converged_run_its_columns_are_null(bundle):
    options = BenchOptions(batch=2, repeats=2, images=2, converged_images=0, tuning_images=2, threads=1)
    *_, report = bench(bundle, options)
    assert {row["psnr_converged_db"] for row in to_json(report)["rows"]} == {None}


def test_a_batch_outside_the_contract_is_refused(bundle):
    with pytest.raises(UsageError, match="a batch of 65 is outside"):
        next(iter(bench(bundle, BenchOptions(batch=65))))


def test_guidance_without_its_rows_is_refused(bundle):
    with pytest.raises(UsageError, match="guidance scale 3"):
        next(iter(bench(bundle, BenchOptions(guidance_scale=3.0))))


def test_an_image_of_a_seed_does_not_depend_on_its_batch(bundle):
    session = FullNetwork(bundle, OPTIONS).full_session()
    alone, together = (np.concatenate(list(draw(session, bundle, s, [7] * len(s)))) for s in ([5], [3, 4, 5]))
    assert alone.shape == (1, 1, 16, 16) and together.shape == (3, 1, 16, 16)
    assert np.abs(alone[0] - together[2]).max() <= 1e-4


def test_the_converged_run_uses_every_training_timestep(bundle):
    network = FullNetwork(bundle, OPTIONS)
    spec = network.converged_session(1000).program.contract.sampler
    assert (spec.class_name, spec.timesteps) == ("DDIMScheduler", tuple(float(999 - i) for i in range(1000)))
    assert network.converged_session(1001).program.nfe == 1000


def test_variants_are_distinct_and_make_as_many_calls(bundle):
    network = FullNetwork(bundle, OPTIONS)
    for name, most in (("ddim", 3), ("dpmpp-2m", 8), ("unipc", 8)):
        variants = list(network.variants(name, 5))
        assert 2 <= len(variants) <= most
        assert {variant.spec.calls for variant in variants} == {5}
        assert len({variant.label for variant in variants}) == len(variants)

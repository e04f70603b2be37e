"""A real bench, tiny, and the document it gives."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bench import BenchOptions, BenchReport, bench, load_report, to_json, write_report
from dipgo_deploy.bench.contenders import FullNetwork
from dipgo_deploy.bench.plain import comparable_steps, plain_samplers
from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.progress import Progress, finish
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.models import make_contract
from dipgo_deploy.models.sampler_variants import variants
from dipgo_deploy.runtime.generate import generate_batches
from dipgo_deploy.search import DeepCacheOptions, SearchOptions, schedule_by_rule

OPTIONS = BenchOptions(
    batch=2,
    repeats=2,
    images=4,
    converged_images=2,
    converged_calls=20,
    tuning_images=2,
    run=RunOptions(threads=1),
    command="test",
)

PSNR = {"p10": float, "p50": float, "p50_low": float, "p50_high": float}
ROW = {
    "name": str,
    "kind": str,
    "nfe": int,
    "macs": {"papers": int, "full": int},
    "latency_ms": {"p50": float, "p90": float},
    "speedup": float,
    "speedup_end_to_end": type(None),
    "efficiency": float,
    "psnr_full_db": PSNR,
    "psnr_converged_db": PSNR,
    "ssim": {"p10": float, "p50": float},
    "ssim_converged": {"p10": float, "p50": float},
    "frechet": float,
    "accuracy": float,
    "weight_bytes": int,
    "slot_bytes": int,
    "first_image_ms": float,
    "device_bytes": type(None),
    "build_seconds": type(None),
    "engine_bytes": type(None),
    "backend": str,
}
SIZES = (
    "batch", "repeats", "images", "converged_images", "converged_calls", "tuning_images", "guidance_scale", "seed",
    "quick",
)  # fmt: skip
FIELDS = ["environment", "contract", "rows", "memory", "aa_ratio", "components_ms", "left_out"]


def shape(value: object) -> object:
    return {key: shape(entry) for key, entry in value.items()} if isinstance(value, dict) else type(value)


@pytest.fixture(scope="module")
def bundles(digits_unet, traced, tmp_path_factory):
    """``half`` computes every second of eight steps in full. ``cheap`` computes all steps in part.

    Eight divides the 1000 training timesteps, so DDIM rounds no timestep.
    """
    folder, contract = tmp_path_factory.mktemp("bench"), make_contract(digits_unet, steps=8)
    graph = traced("digits-unet", "stage").blocks
    searches = {
        "half": SearchOptions("uniform", 0.5),
        "cheap": SearchOptions("deepcache", 0.5, settings=DeepCacheOptions(4, 1)),
    }
    schedules = {name: schedule_by_rule(graph, contract, search) for name, search in searches.items()}
    return {name: load_bundle(export(digits_unet, schedule, folder / name)) for name, schedule in schedules.items()}


@pytest.fixture(scope="module")
def bundle(bundles):
    return bundles["half"]


@pytest.fixture(scope="module")
def measured(bundles) -> tuple[list[Progress], BenchReport]:
    """Both bundles and a schedule that computes at steps 0, 1, 4 and 6: every test of a whole report reads this."""
    own, steps = bundles["half"].schedule, []
    learned = own.with_compute([frozenset(own.blocks) if step in (0, 1, 4, 6) else frozenset() for step in range(8)])
    report = finish(bench([*bundles.values()], OPTIONS, [("learned", learned)]), steps.append)
    return steps, report


@pytest.fixture(scope="module")
def report(measured) -> BenchReport:
    return measured[1]


@pytest.fixture(scope="module")
def alone(bundle) -> BenchReport:
    """One bundle, without a converged run."""
    return finish(bench(bundle, replace(OPTIONS, converged_images=0)))


def test_every_stage_ends_and_says_what_it_does(measured):
    steps, report = measured
    last = {step.stage: step for step in steps}
    assert list(last) == ["reference images", "pilot timing", "tuning plain samplers", "timing", "drawing images"]
    assert all(step.done == step.total for step in last.values())
    shares = [step.share for step in steps if step.stage == "drawing images"]
    assert shares == sorted(shares) and len(shares) == 2 * len(report.rows)
    assert {step.text for step in steps if step.stage == "drawing images"} == {row.name for row in report.rows}
    assert any(step.text == "converged run of 20 calls" for step in steps)


def test_the_share_of_the_whole_bench_grows_from_stage_to_stage(measured):
    overall = [step.overall for step in measured[0]]
    assert overall == sorted(overall) and overall[0] < 0.2 and overall[-1] == 1.0
    ends = {step.stage: step.overall for step in measured[0]}
    assert ends["reference images"] < ends["pilot timing"] < ends["tuning plain samplers"] < ends["timing"] < 1


def test_the_document_has_exactly_the_promised_shape(report):
    document = to_json(report)
    assert list(document) == ["schema_version", "format", *FIELDS]
    plain = ROW | {"first_image_ms": type(None)}
    assert [shape(row) for row in document["rows"]] == [plain if row.kind == "sampler" else ROW for row in report.rows]
    assert shape(document["memory"]) == {"model_weight_bytes": int, "bundle_weight_bytes": int, "slot_bytes": int}
    assert document["environment"]["command"] == "test"
    settings = document["environment"]["bench"]
    assert settings.keys() == {*SIZES, *(field.name for field in fields(RunOptions))}
    assert (settings["backend"], settings["device"], settings["threads"]) == ("onnxruntime", "cpu", 1)
    assert (settings["images"], settings["guidance_scale"], settings["quick"]) == (4, 1.0, False)
    assert document["environment"]["extractor"] == "digits-classifier"
    json.dumps(document, allow_nan=False)


def test_rows_are_full_schedule_and_every_plain_sampler(alone):
    full, schedule, grid, *samplers = alone.rows
    assert [row.kind for row in alone.rows[:2]] == ["full", "schedule"]
    assert (full.nfe, schedule.nfe, schedule.name) == (8, 4, "half")
    assert (grid.name, grid.kind, grid.nfe) == ("DDIM-4 on half's grid", "sampler", 4)
    assert {row.name.split("-4 ")[0] for row in samplers if row.nfe == 4} == {"DDIM", "DPM++ 2M", "UniPC"}
    assert all(row.kind == "sampler" for row in samplers)


def test_every_row_names_what_it_ran_on(report, bundle):
    assert {row.backend for row in report.rows} == {"onnxruntime-cpu"}
    on_engines = FullNetwork(bundle, replace(OPTIONS, run=RunOptions("rtx")))
    assert on_engines.backend_name == "onnxruntime-cuda"


def test_the_numbers_fit_each_other(report):
    full, schedule, *_ = report.rows
    assert (full.speedup, full.efficiency, full.psnr_full_db["p50"]) == (1.0, 1.0, 120.0)
    assert full.macs.full == 2 * schedule.macs.full
    assert schedule.efficiency == pytest.approx(schedule.speedup / 2)
    assert schedule.psnr_full_db["p10"] <= schedule.psnr_full_db["p50"] < 120.0
    assert report.memory["model_weight_bytes"] <= report.memory["bundle_weight_bytes"]
    assert report.memory["bundle_weight_bytes"] <= 1.01 * report.memory["model_weight_bytes"]


def test_holding_the_noise_is_ddim_on_the_schedules_grid(report):
    rows = {row.name: row for row in report.rows}
    for name in ("half", "learned"):
        held, grid = rows[name], rows[f"DDIM-4 on {name}'s grid"]
        assert held.macs == grid.macs
        for ours, theirs in ((held.psnr_full_db, grid.psnr_full_db), (held.psnr_converged_db, grid.psnr_converged_db)):
            assert ours == pytest.approx(theirs, abs=0.05)
    assert rows["half"].psnr_full_db != pytest.approx(rows["learned"].psnr_full_db, abs=0.5)


def test_several_schedules_stand_in_one_report(report, alone):
    assert [row.name for row in report.rows if row.kind == "schedule"] == ["half", "cheap", "learned"]
    assert not any("cheap's grid" in row.name for row in report.rows)  # computes the prediction at every step
    assert len({row.name for row in report.rows}) == len(report.rows)
    assert {row.nfe for row in report.rows if row.kind == "sampler"} >= {4}
    first, second = (next(row for row in some.rows if row.name == "half") for some in (alone, report))
    assert first.psnr_full_db == pytest.approx(second.psnr_full_db, abs=1e-3)
    assert (first.weight_bytes, first.slot_bytes) == (second.weight_bytes, second.slot_bytes)


def test_comparable_steps_are_the_calls_of_schedules_and_then_latencies_that_differ():
    assert comparable_steps([10, 10, 25], 50, [5.0, 4.6, 2.0]) == [10, 25]
    assert comparable_steps([10, 50], 50, [4.0, 2.5]) == [10, 12, 20]
    assert comparable_steps([5], 50, [100.0, 0.1]) == [5, 1, 100]
    assert comparable_steps([50], 50, [1.02]) == [49]


def test_a_sampler_stands_in_the_best_variant_for_each_target_and_once_if_they_agree(bundle):
    network = FullNetwork(bundle, OPTIONS)
    choice = list(variants("dpmpp-2m", 4, network.scheduler_config))
    first, last = (
        np.concatenate(list(generate_batches(network.session(one.spec, one.reading), bundle, range(4), [0, 1, 2, 3])))
        for one in (choice[0], choice[-1])
    )
    names = [one.name for one in finish(plain_samplers(network, [4], range(4), [first, last]))]
    assert [name for name in names if "DPM" in name] == [f"DPM++ 2M-4 {choice[i].label}" for i in (0, -1)]
    alone = [one.name for one in finish(plain_samplers(network, [4], range(4), [last, last]))]
    assert len(alone) == 3 and f"DPM++ 2M-4 {choice[-1].label}" in alone


def test_the_report_is_written_as_its_document(report, tmp_path: Path):
    write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == to_json(report)
    assert load_report(tmp_path / "report.json") == report


def test_without_a_converged_run_its_columns_are_null(alone):
    rows = to_json(alone)["rows"]
    assert {row["psnr_converged_db"] for row in rows} == {row["ssim_converged"] for row in rows} == {None}


def test_a_batch_outside_the_contract_is_refused(bundle):
    with pytest.raises(UsageError, match="batch must be 1 to 64"):
        next(iter(bench(bundle, BenchOptions(batch=65))))


def test_guidance_without_its_rows_is_refused(bundle):
    with pytest.raises(UsageError, match="guidance_scale is 3"):
        next(iter(bench(bundle, BenchOptions(guidance_scale=3.0))))


def test_an_image_of_a_seed_does_not_depend_on_its_batch(bundle):
    session = FullNetwork(bundle, OPTIONS).full().session
    alone, together = (
        np.concatenate(list(generate_batches(session, bundle, s, [7] * len(s)))) for s in ([5], [3, 4, 5])
    )
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
        found = list(variants(name, 5, network.scheduler_config))
        assert 2 <= len(found) <= most
        assert {variant.spec.calls for variant in found} == {5}
        assert len({variant.label for variant in found}) == len(found)

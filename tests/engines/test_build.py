"""build-engine by TensorRT-RTX, for real and without a GPU, from bundles of the reference models and tiny families."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from dipgo_deploy.bundle import Bundle, load_bundle
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.engines.build import EngineOptions, EngineReport
from dipgo_deploy.engines.fallback import FallbackOptions
from dipgo_deploy.engines.planner import PlanOptions, plan
from dipgo_deploy.graphs.untrusted import graph_digest
from dipgo_deploy.models import LoadedModel, load_model
from dipgo_deploy.runtime.dry_run import dry_run
from dipgo_deploy.trt.job import BuildFlags
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs, half_export

rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'dipgo-deploy[rtx]'")
pytestmark = pytest.mark.tensorrt

QUICK = FallbackOptions(images=1, steps=1)
FP16 = EngineOptions("float16", "rtx", ("sm89",), BatchRange(1, 4, 8), islands=QUICK)
STATIC = replace(FP16, flags=BuildFlags(static=True))
MODELS = ("digits-unet", "digits-dit", "sd", "sdxl", "dit", "pixart-alpha")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of other tests are not taken over."""
    monkeypatch.setattr("dipgo_deploy.trt.store.cache_folder", lambda: tmp_path / "cache")


@cache
def model_of(name: str) -> LoadedModel:
    return load_model(name) if name.startswith("digits") else tiny(name)


def built(bundle: Bundle, options: EngineOptions = FP16) -> EngineReport:
    report = list(build(bundle, options))[-1][2]
    assert report is not None
    return report


def check_half(bundle: Bundle, report: EngineReport) -> None:
    """Every graph has an engine whose inputs and outputs, read back from the network, are half precision."""
    graphs = bundle.program.graph_of_name
    assert len(graphs) >= 2 and [record.graph for record in report.records] == sorted(graphs)
    assert report.counts == {"kept": 0, "copied": 0, "built": len(graphs)}
    for record in report.records:
        floats = {tensor: io.dtype for tensor, io in record.io.items() if io.dtype not in ("int64", "bool")}
        assert {kind for tensor, kind in floats.items() if tensor != "timestep"} <= {"float16"}
        assert floats.get("timestep", "float32") == "float32"
        assert set(record.io) >= {*graphs[record.graph].reads, *graphs[record.graph].writes}
    if bundle.program.layout == "segments":
        weights = sum(record.weight_bytes for record in report.records)
        assert weights <= 1.05 * bundle.manifest.model_weight_bytes / 2


CELLS = [(name, layout, static) for name in MODELS for layout in ("subnets", "segments") for static in (False, True)]
BOTH = ("sd", "dit")
"""Of these each layout is built with a profile and static; of the others SubNets with a profile, segments static."""


@pytest.mark.parametrize(
    ("name", "layout", "static"), [c for c in CELLS if c[0] in BOTH or (c[1] == "segments") == c[2]]
)
def test_every_graph_becomes_an_engine_of_half_precision(name: str, layout: str, static: bool, tmp_path: Path) -> None:
    bundle = few_graphs(model_of(name), tmp_path / "bundle", layout)
    report = built(bundle, STATIC if static else FP16)
    check_half(bundle, report)
    rows = bundle.manifest.contract.rows_per_image
    inputs = {spec.name for spec in bundle.blocks.inputs}
    for record in report.records:
        shapes = {tensor: io.shape for tensor, io in record.io.items() if tensor in inputs}
        assert {shape[0] for shape in shapes.values()} <= {4 * rows if static else -1}
        assert all(shape[1:] == bundle.blocks.values[tensor].shape[1:] for tensor, shape in shapes.items())
        for tensor in () if static else shapes:
            profile = record.profile[tensor]
            assert [profile.min[0], profile.opt[0], profile.max[0]] == [rows, 4 * rows, 8 * rows]
        assert not (static and record.profile)


def test_what_was_built_is_recorded_in_the_manifest_and_stands_the_next_time(tmp_path: Path) -> None:
    bundle = few_graphs(model_of("dit"), tmp_path / "bundle")
    report = built(bundle)
    assert report.folder == bundle.denoiser / "engines" / f"rtx-{rtx.__version__}-sm89"
    again = load_bundle(bundle.folder, whole=True)
    recorded = {entry.path: entry.sha256 for entry in again.manifest.files}
    for record in report.records:
        name = f"transformer/engines/{report.folder.name}/{record.graph}"
        assert recorded[f"{name}.engine"] == record.sha256 and f"{name}.json" in recorded
        assert load_engine_record(report.folder / f"{record.graph}.json") == record
    lines = [line for _, line, _ in build(again, FP16)]
    assert lines[0] == "the half-precision graphs stand" and lines[1].endswith("MiB of engines are foretold")
    assert lines[2:-1] == ["subnet_00 kept", "subnet_01 kept"]


@pytest.mark.parametrize("name", ["dit", "digits-dit", "digits-unet"])
def test_sizes_are_foretold_before_the_build_by_plan_and_build_alike(name: str, tmp_path: Path) -> None:
    bundle = few_graphs(model_of(name), tmp_path / "bundle")
    planned = plan(bundle, PlanOptions(precision="float16")).layouts[0]
    wanted = dry_run(bundle, FP16)
    assert wanted.converts and wanted.counts == {"kept": 0, "copied": 0, "built": 2}
    assert {engine.digest for engine in wanted.engines} == {None}
    report = built(bundle)
    size = sum(record.bytes for record in report.records)
    for foretold in (
        planned.engine_bytes,
        sum(engine.engine_bytes for engine in wanted.engines),
        sum(report.foretold.values()),
    ):
        assert foretold == pytest.approx(size, rel=0.1)
        assert foretold == pytest.approx(planned.engine_bytes, rel=0.001)
    weights = sum(record.weight_bytes for record in report.records)
    assert weights < planned.engine_bytes and planned.weight_bytes == pytest.approx(weights, rel=0.01)
    assert all(record.activation_bytes > 0 for record in report.records)


def test_a_dry_run_names_what_stands_and_writes_nothing(tmp_path: Path) -> None:
    bundle = few_graphs(model_of("dit"), tmp_path / "bundle", shares=(1, 0))
    plain = replace(FP16, precision=None)
    files = {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()}
    (wanted,) = dry_run(bundle, plain).engines
    assert (wanted.outcome, wanted.exists) == ("built", False)
    assert {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()} == files
    (record,) = built(bundle, plain).records
    (found,) = dry_run(load_bundle(bundle.folder), plain).engines
    assert (found.outcome, found.exists, found.digest) == ("kept", True, record.digest)
    assert found.engine_bytes == record.bytes and found.digest == wanted.digest
    (other,) = dry_run(few_graphs(model_of("dit"), tmp_path / "other", shares=(1, 0)), plain).engines
    assert (other.outcome, other.engine_bytes) == ("copied", record.bytes)


def test_another_step_rebuilds_only_the_graphs_it_touches(tmp_path: Path) -> None:
    model = model_of("dit")
    first = few_graphs(model, tmp_path / "one", shares=(1, 0.5, 1, 0.5))
    assert built(first).counts == {"kept": 0, "copied": 0, "built": 2}
    other = few_graphs(model, tmp_path / "two", shares=(1, 0.5, 1, 0.75))  # the last step: a graph of its own
    report = built(other)
    found = {step.record.graph: step.outcome for step in report.steps}
    # subnet_00 must keep one feature more; subnet_01 is what it was
    assert found == {"subnet_00": "built", "subnet_01": "copied", "subnet_02": "built"}
    assert built(load_bundle(other.folder)).counts == {"kept": 3, "copied": 0, "built": 0}


def test_a_bundle_exported_in_half_precision_is_built_as_it_is_where_it_holds(tmp_path: Path) -> None:
    bundle = half_export(model_of("dit"), tmp_path / "half")
    assert dry_run(bundle, FP16).note == "a search for islands comes first, and may change these graphs"
    lines = [line for _, line, _ in build(bundle, FP16)]
    assert lines[0] == "tracing the model in float32" and "float16 holds as exported" in lines
    report = built(load_bundle(bundle.folder, whole=True))
    assert report.precision is not None and not report.precision.keeps_float32
    assert {record.precision for record in report.records} == {"float16"} and report.counts["kept"] == 1
    assert {io.dtype for record in report.records for io in record.io.values()} <= {"float16", "float32", "int64"}
    assert not (bundle.folder / "program.fp16.json").exists() and dry_run(bundle, FP16).note == ""
    with pytest.raises(UsageError, match="the bundle is in float16, bfloat16 is wanted: export it in float32"):
        built(bundle, replace(FP16, precision="bfloat16"))


def test_a_half_export_that_does_not_hold_is_built_of_graphs_with_islands(tmp_path: Path, monkeypatch) -> None:
    """Which are found in tests/runtime/test_half_export.py; here the angles of its sines are said to be too coarse."""
    monkeypatch.setattr("dipgo_deploy.engines.precision._has_half_angles", lambda _: True)
    bundle = half_export(model_of("dit"), tmp_path / "half")
    report = built(bundle, replace(FP16, precision=None))
    assert report.precision is not None and report.counts["built"] == 1
    source = engine_source(load_bundle(bundle.folder), None)
    assert [path.name for path in source.graphs.values()] == ["subnet_00.fp16.onnx"]
    (record,) = report.records
    assert {io.dtype for io in record.io.values()} <= {"float16", "float32", "int64"}
    assert record.graph_digest == graph_digest(source.graphs["subnet_00"].read_bytes())
    assert built(load_bundle(bundle.folder, whole=True)).counts == {"kept": 1, "copied": 0, "built": 0}


def test_an_export_to_the_same_folder_keeps_the_engines_that_still_fit(tmp_path: Path) -> None:
    model = model_of("dit")
    built(few_graphs(model, tmp_path / "bundle", shares=(1, 0.5, 1, 0.5)))
    again = few_graphs(model, tmp_path / "bundle", shares=(1, 0.75, 1, 0.5))  # renumbers: the half is now subnet_02
    assert not [entry for entry in again.manifest.files if "/engines/" in entry.path]
    report = built(again)
    assert {step.record.graph: step.outcome for step in report.steps}["subnet_02"] == "copied"
    assert report.counts["built"] == 2
    load_bundle(again.folder, whole=True)


def test_bfloat16_and_float32_are_built_too(tmp_path: Path) -> None:
    bundle = few_graphs(model_of("dit"), tmp_path / "bundle", shares=(1, 0))
    (record,) = built(bundle, replace(FP16, precision="bfloat16")).records
    assert record.io["prediction"].dtype == "bfloat16" and record.precision == "bfloat16"
    (record,) = built(load_bundle(bundle.folder), replace(FP16, precision=None)).records
    assert record.io["prediction"].dtype == "float32"


def test_the_result_of_the_island_search_is_cached_until_something_changes(tmp_path: Path) -> None:
    bundle = few_graphs(model_of("dit"), tmp_path / "bundle", shares=(1, 0))
    record = built(bundle).precision
    written = json.loads((bundle.folder / "precision.fp16.json").read_text())
    assert record is not None and written["source"] == record.source
    again = load_bundle(bundle.folder)
    assert "measuring ranges" not in [line for _, line, _ in build(again, FP16)]
    stricter = replace(FP16, islands=FallbackOptions(images=1, steps=1, tolerance=1e-2))
    assert "measuring ranges" in [line for _, line, _ in build(again, stricter)]
    assert engine_source(again, "float16").program.contract.dtype == "float16"


def test_a_build_that_dies_leaves_a_bundle_that_loads_and_is_built(tmp_path: Path, monkeypatch) -> None:
    bundle = few_graphs(model_of("dit"), tmp_path / "bundle", shares=(1, 0))
    built(bundle)
    bf16 = replace(FP16, precision="bfloat16")
    with monkeypatch.context() as patch:  # another precision replaces engines and dies before it records them
        patch.setattr("dipgo_deploy.engines.build.add_records", lambda *_: None)
        built(load_bundle(bundle.folder), replace(FP16, precision=None))
        patch.setattr("dipgo_deploy.bundle.half_precision.add_records", lambda *_: None)
        with pytest.raises(InputError, match=r"has no digest of precision\.bf16\.json"):
            built(load_bundle(bundle.folder), bf16)
    for options in (bf16, FP16):
        (record,) = built(load_bundle(bundle.folder, whole=True), options).records
        assert record.precision == options.precision
    next(bundle.denoiser.rglob("*.engine")).unlink()
    assert built(load_bundle(bundle.folder)).counts["built"] == 1


def test_a_batch_outside_the_contract_is_refused(tmp_path: Path) -> None:
    bundle = few_graphs(model_of("dit"), tmp_path / "bundle", shares=(1, 0))
    with pytest.raises(UsageError, match="a batch of 1-4-128 does not lie in order within the contract's 1 to 64"):
        built(bundle, replace(FP16, batch=BatchRange(1, 4, 128)))


def test_a_crafted_bundle_writes_and_deletes_nothing_elsewhere(tmp_path: Path) -> None:
    bundle = few_graphs(model_of("dit"), tmp_path / "bundle", shares=(1, 0))
    name, plain = f"rtx-{rtx.__version__}-sm89", replace(FP16, precision=None)
    home, outside = bundle.denoiser / "engines" / name, tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("mine")
    home.parent.mkdir()
    home.symlink_to(outside)
    with pytest.raises(InputError, match="no path inside that folder"):
        built(bundle, plain)
    home.unlink()
    home.symlink_to("..")
    with pytest.raises(InputError, match="is a link, a folder or file of the bundle's own is wanted there"):
        built(bundle, plain)
    home.unlink()
    home.mkdir()
    (home / "subnet_00.log").symlink_to(outside / "precious.txt")
    assert built(bundle, plain).counts["built"] == 1
    assert (outside / "precious.txt").read_text() == "mine" and len(list(outside.iterdir())) == 1

"""Builds of a bundle's engines: what is up to date, what is recorded, and what a dead or crafted build leaves.

Builds pretend here, except those of the shared bundle. Real builds are in test_real_builds.py.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dipgo_deploy.bundle import Bundle, load_bundle
from dipgo_deploy.bundle.half_precision import graph_source
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.core.progress import finish
from dipgo_deploy.engines import EngineOptions, EngineReport, FallbackOptions, build_bundle_engines
from dipgo_deploy.engines.estimate import EngineEstimate, dry_run
from dipgo_deploy.models import LoadedModel
from tests.engines.options import FLOAT32, FP16
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs

rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'dipgo-deploy[rtx]'")
pytestmark = pytest.mark.tensorrt


@pytest.fixture(scope="module")
def dit() -> LoadedModel:
    return tiny("dit")


def build(bundle: Bundle, options: EngineOptions = FP16) -> EngineReport:
    return finish(build_bundle_engines(load_bundle(bundle.folder, whole=True), options))


def progress_of(bundle: Bundle, options: EngineOptions = FP16) -> list[str]:
    texts: list[str] = []
    finish(build_bundle_engines(load_bundle(bundle.folder), options), lambda progress: texts.append(progress.text))
    return texts


def statuses(report: EngineReport) -> dict[str, str]:
    return {engine.record.graph: engine.status for engine in report.engines}


def contents(bundle: Bundle) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()}


def test_engines_are_recorded_in_the_manifest_and_up_to_date_the_next_time(built_bundle: Bundle) -> None:
    before = contents(built_bundle)
    report = build(built_bundle)
    assert report.folder == built_bundle.denoiser / "engines" / f"rtx-{rtx.__version__}-sm89"
    digests = built_bundle.manifest.digests
    for record in report.records:
        name = f"transformer/engines/{report.folder.name}/{record.graph}"
        assert digests[f"{name}.engine"] == record.sha256 and f"{name}.json" in digests
        assert load_engine_record(report.folder / f"{record.graph}.json") == record
    assert progress_of(built_bundle) == [
        "the half-precision graphs are up to date",
        "subnet_00 up to date",
        "subnet_01 up to date",
    ]
    assert contents(built_bundle) == before


def test_a_dry_run_names_the_status_of_every_engine_and_writes_nothing(built_bundle: Bundle, tmp_path: Path) -> None:
    before = contents(built_bundle)
    records = build(built_bundle).records
    estimate = dry_run(built_bundle, FP16)
    assert estimate.engines == tuple(
        EngineEstimate(record.graph, record.digest, "up to date", record.weight_bytes, record.bytes, True)
        for record in records
    )
    assert not estimate.searches and estimate.counts == {"up to date": 2, "copied": 0, "built": 0}

    folder = shutil.copytree(built_bundle.folder, tmp_path / "without engines")
    shutil.rmtree(folder / "transformer" / "engines")
    copied = dry_run(load_bundle(folder), FP16)
    assert [(engine.status, engine.engine_bytes) for engine in copied.engines] == [("copied", r.bytes) for r in records]
    other = dry_run(load_bundle(folder), FLOAT32)
    assert other.counts == {"up to date": 0, "copied": 0, "built": 2} and not other.searches
    assert all(engine.engine_bytes > engine.weight_bytes and not engine.is_measured for engine in other.engines)
    assert contents(built_bundle) == before and not (folder / "transformer" / "engines").exists()


def test_a_dry_run_before_a_search_estimates_half_the_weights(dit: LoadedModel, tmp_path: Path, fake_builds) -> None:
    bundle = few_graphs(dit, tmp_path / "bundle")
    before = contents(bundle)
    half, plain = dry_run(bundle, FP16), dry_run(bundle, FLOAT32)
    assert half.searches and {engine.digest for engine in half.engines} == {None}
    assert half.counts == {"up to date": 0, "copied": 0, "built": 2} and half.folder == plain.folder
    for engine, float32 in zip(half.engines, plain.engines, strict=True):
        assert engine.weight_bytes == float32.weight_bytes // 2
        assert engine.engine_bytes - engine.weight_bytes == float32.engine_bytes - float32.weight_bytes > 0
    stripped = dry_run(bundle, replace(FLOAT32, flags=replace(FLOAT32.flags, level=1)))
    assert stripped.engines[0].digest != plain.engines[0].digest
    assert contents(bundle) == before and fake_builds == []


def test_another_step_rebuilds_only_the_graphs_that_it_touches(dit: LoadedModel, tmp_path: Path, fake_builds) -> None:
    first = few_graphs(dit, tmp_path / "one", shares=(1, 0.5, 1, 0.5))
    assert build(first).counts == {"up to date": 0, "copied": 0, "built": 2}
    other = few_graphs(dit, tmp_path / "two", shares=(1, 0.5, 1, 0.75))  # The last step has a graph of its own.
    # subnet_00 keeps one feature more, and subnet_01 is unchanged.
    assert statuses(build(other)) == {"subnet_00": "built", "subnet_01": "copied", "subnet_02": "built"}
    assert build(other).counts == {"up to date": 3, "copied": 0, "built": 0}


def test_an_export_to_the_same_folder_keeps_the_engines_that_still_fit(
    dit: LoadedModel, tmp_path: Path, fake_builds
) -> None:
    build(few_graphs(dit, tmp_path / "bundle", shares=(1, 0.5, 1, 0.5)))
    again = few_graphs(dit, tmp_path / "bundle", shares=(1, 0.75, 1, 0.5))  # The half network is now subnet_02.
    assert not [entry for entry in again.manifest.files if "/engines/" in entry.path]
    report = build(again)
    assert statuses(report)["subnet_02"] == "copied" and report.counts["built"] == 2
    load_bundle(again.folder, whole=True)


def test_every_precision_has_its_own_engines(dit: LoadedModel, tmp_path: Path, fake_builds) -> None:
    bundle = few_graphs(dit, tmp_path / "bundle", shares=(1, 0))
    for options, dtype in ((replace(FP16, precision="bfloat16"), "bfloat16"), (FLOAT32, "float32"), (FP16, "float16")):
        (record,) = build(bundle, options).records
        assert record.io["prediction"].dtype == dtype and record.precision == dtype
    assert fake_builds == ["subnet_00"] * 3


def test_the_search_for_fallback_nodes_is_kept_until_something_changes(
    dit: LoadedModel, tmp_path: Path, fake_builds
) -> None:
    bundle = few_graphs(dit, tmp_path / "bundle", shares=(1, 0))
    record = build(bundle).precision
    written = json.loads((bundle.folder / "precision.fp16.json").read_text())
    assert record is not None and written["source"] == record.source
    assert "measuring ranges" not in progress_of(bundle)
    stricter = replace(FP16, fallback=FallbackOptions(images=1, steps=1, tolerance=1e-2))
    assert "measuring ranges" in progress_of(bundle, stricter)
    assert graph_source(load_bundle(bundle.folder), "float16").program.contract.dtype == "float16"


def test_a_build_that_dies_leaves_a_bundle_that_loads_and_is_built(
    dit: LoadedModel, tmp_path: Path, fake_builds, monkeypatch
) -> None:
    bundle = few_graphs(dit, tmp_path / "bundle", shares=(1, 0))
    build(bundle)
    bf16 = replace(FP16, precision="bfloat16")
    with monkeypatch.context() as patch:  # Builds in other precisions replace engines, and die before the records.
        patch.setattr("dipgo_deploy.engines.build.add_records", lambda *_: None)
        build(bundle, FLOAT32)
        patch.setattr("dipgo_deploy.bundle.half_precision.add_records", lambda *_: None)
        with pytest.raises(InputError, match=r"has no digest of program\.bf16\.json"):
            build(bundle, bf16)
    for options in (bf16, FP16):
        (record,) = build(bundle, options).records
        assert record.precision == options.precision
    next(bundle.denoiser.rglob("*.engine")).unlink()
    assert build(bundle).counts["built"] == 1


def test_an_interrupted_build_records_the_engines_that_it_finished(
    dit: LoadedModel, tmp_path: Path, fake_builds, monkeypatch
) -> None:
    bundle = few_graphs(dit, tmp_path / "bundle")
    work = build_bundle_engines(bundle, FLOAT32)
    assert next(work).text == "subnet_00 built"
    work.close()
    names = [entry.path for entry in load_bundle(bundle.folder, whole=True).manifest.files]
    assert [name for name in names if name.endswith("subnet_00.engine")]
    assert statuses(build(bundle, FLOAT32))["subnet_00"] == "up to date"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": BatchRange(1, 4, 128)}, "batch must be .* the contract's 1 to 64 images, got 1-4-128"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"gpus": ("sm90",)}, "not for sm90: choose among these"),
        ({"target": "tpu"}, "target 'tpu' is unknown: choose tensorrt or rtx"),
        ({"fallback": FallbackOptions(tolerance=0.1)}, "tolerance is for the search .* float32 built in float32"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    dit: LoadedModel, tmp_path: Path, fake_builds, options: dict, message: str
) -> None:
    bundle = few_graphs(dit, tmp_path / "bundle", shares=(1, 0))
    with pytest.raises(UsageError, match=message):
        build(bundle, replace(FLOAT32, **options))
    assert fake_builds == []


def test_a_crafted_bundle_writes_and_deletes_nothing_elsewhere(
    dit: LoadedModel, tmp_path: Path, engine_store: Path
) -> None:
    bundle = few_graphs(dit, tmp_path / "bundle", shares=(1, 0))
    home, outside = bundle.denoiser / "engines" / f"rtx-{rtx.__version__}-sm89", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("mine")
    home.parent.mkdir()
    home.symlink_to(outside)
    with pytest.raises(InputError, match="is a link, and nothing is written through links"):
        build(bundle, FLOAT32)
    home.unlink()
    home.symlink_to("..")
    with pytest.raises(InputError, match="is a link"):
        build(bundle, FLOAT32)
    home.unlink()
    home.mkdir()
    (home / "subnet_00.log").symlink_to(outside / "precious.txt")
    assert build(bundle, FLOAT32).counts["built"] == 1  # A real build, which writes a real log.
    assert (outside / "precious.txt").read_text() == "mine" and len(list(outside.iterdir())) == 1

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipgo_deploy.bench.report import load_report, to_json, write_report
from dipgo_deploy.core.errors import InputError
from tests.bench.reports import report_of, row
from tests.cli.refusal import edit

REPORT = report_of(row("uniform", "schedule", 100), components_ms={"vae": 3.0}, left_out=("text_encoder is left out",))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_report(REPORT, tmp_path / "bench.json")
    return tmp_path / "bench.json"


def test_a_report_is_read_as_it_was_written(written):
    assert load_report(written) == REPORT
    assert json.loads(written.read_text()) == to_json(REPORT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format="bunch"), "has format 'bunch', expected 'bench'"),
        (lambda d: d.update(schema_version="2.0"), "has format version 2.0, this program reads 1.3"),
        (lambda d: d.update(speed=11), "speed"),
        (lambda d: d.pop("rows"), "rows"),
        (lambda d: d["rows"][0].update(kind="emperor"), "kind"),
        (lambda d: d["rows"][0].update(kind="sampler"), "the first row of a bench must be the full run"),
        (lambda d: d["rows"].clear(), "the first row of a bench must be the full run"),
        (lambda d: d["rows"][1]["psnr_full_db"].pop("p50"), "psnr_full_db of uniform must hold p10, p50, p50_low"),
        (
            lambda d: d["rows"][1]["latency_ms"].update(p50=0),
            "the latency of uniform must be above 0 ms in .*, got 0.0",
        ),
    ],
)
def test_a_damaged_report_is_refused(change, words, written):
    edit(written, change)
    with pytest.raises(InputError, match=words):
        load_report(written)


def test_a_minor_version_is_read(written):
    edit(written, lambda document: document.update(schema_version="1.7"))
    assert load_report(written) == REPORT


@pytest.mark.parametrize("model", ["digits-unet", "digits-dit"])
def test_the_tracked_benches_load(model):
    tracked = Path(__file__).parent.parent.parent / "benchmarks" / "results" / f"bench-{model}.json"
    if not tracked.is_file():
        pytest.skip("the source distribution holds no benchmarks")
    report = load_report(tracked)
    assert len(report.rows) >= 15 and report.environment["bench"]["backend"] == "onnxruntime"


def test_the_settings_of_older_documents_need_no_new_keys(written):
    edit(written, lambda document: document["environment"].update(bench={"batch": 8, "threads": None, "device": "cpu"}))
    assert load_report(written).environment["bench"]["device"] == "cpu"

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from dipgo_deploy.bench.report import BenchReport
from dipgo_deploy.bench.report_table import table
from tests.bench.reports import CROWD, report_of, row


def text_of(report: BenchReport, width: int = 160) -> str:
    console = Console(width=width, record=True, file=StringIO())
    console.print(table(report))
    return console.export_text()


def test_every_row_is_named_and_the_median_has_its_interval():
    text = text_of(CROWD)
    assert all(row.name in text for row in CROWD.rows)
    assert "33.0/35.0±0.5" in text and "A/A" in text


def test_the_full_run_is_identical_to_itself():
    same = dict.fromkeys(("p10", "p50", "p50_low", "p50_high"), 120.0)
    assert "  identical " in text_of(report_of(row("uniform", "schedule", 100, psnr_full_db=same)))
    half = {"p10": 34.0, "p50": 120.0, "p50_low": 36.0, "p50_high": 120.0}
    assert "34.0/identical" in text_of(report_of(row("uniform", "schedule", 100, psnr_full_db=half)))


def test_columns_without_values_are_omitted():
    text = text_of(report_of(row("uniform", "schedule", 100, converged_db=None)))
    assert "conv." not in text and "Fréchet" not in text and "end to" not in text


def test_backends_are_named_where_they_differ():
    def report(first):
        rows = (row("full", "full", 500, 120.0, 45.0, backend=first), row("x", "schedule", 100, backend="rtx"))
        return replace(report_of(rows[1]), rows=rows)

    text = text_of(report("onnxruntime-cuda"), 200)
    assert "Rows run on onnxruntime-cuda and rtx: part of a speed-up across backends is the backend's." in text
    assert [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["x"]] == ["rtx"]
    assert "backend" not in text_of(report("rtx"), 200)


def test_end_to_end_speed_and_its_components():
    parts = {"components_ms": {"text_encoder": 12.0, "vae": 34.56}, "left_out": ("text_encoder_2 is left out: why",)}
    text = text_of(report_of(row("uniform", "schedule", 100, speedup_end_to_end=3.21), **parts))
    assert "end to" in text and "3.21" in text
    assert "text_encoder 12 ms, vae 34.56 ms" in text and "text_encoder_2 is left out: why." in text


def test_memory_of_every_schedule():
    text = " ".join(text_of(CROWD).split())
    assert "uniform: weights 1.00 MiB, slots 0.00 MiB; deepcache: weights 1.00 MiB" in text


def test_a_name_that_looks_like_markup_stays_itself():
    assert "[red]x[/red]" in text_of(report_of(row("[red]x[/red]", "schedule", 100)))


def test_a_quick_bench_says_so():
    settings = {"images": 16, "repeats": 3, "converged_calls": 100, "batch": 8, "quick": True}
    text = text_of(replace(CROWD, environment={"bench": settings}))
    assert "Quick bench, not for publication: 16 images, 3 rounds, converged run of 100 calls." in text
    assert "A whole bench has 256 images, 10 rounds and a converged run of 1000 calls" in " ".join(text.split())
    assert "Quick" not in text_of(CROWD)

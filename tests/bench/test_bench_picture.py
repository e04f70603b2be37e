"""The picture of a bench: equal for equal input, every row numbered and named, nothing overlaps."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from adjustText import adjust_text, intersect
from PIL import Image

from dipgo_deploy.bench.bench_panel import Mark
from dipgo_deploy.bench.bench_picture import bench_picture, family_of
from dipgo_deploy.bench.report import BenchReport, load_report
from dipgo_deploy.core.errors import InputError, UsageError
from tests.bench.colours import colours_of
from tests.bench.reports import CROWD, report_of, row

TRACKED = [
    path
    for path in sorted((Path(__file__).parent.parent.parent / "benchmarks" / "results").glob("bench-*.json"))
    if path.is_file()
]


@pytest.fixture
def placed(monkeypatch) -> list[tuple[list, list]]:
    """Per panel, the places of all marks and their numbers as (number, box), in pixels."""
    panels = []

    def spy(texts, ax, **options):
        marks = [tuple(ax.transData.transform(text.get_position())) for text in texts]
        adjust_text(texts, ax=ax, **options)
        panels.append((marks, [(text.get_text(), text.get_window_extent()) for text in texts]))

    monkeypatch.setattr("adjustText.adjust_text", spy)
    return panels


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_equal_reports_give_equal_files(suffix, tmp_path: Path):
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        bench_picture([CROWD], path)
    assert first.read_bytes() == second.read_bytes()
    assert b"<dc:date>" not in first.read_bytes()


def test_each_family_has_a_colour_of_its_own(tmp_path: Path):
    assert [family_of(row) for row in CROWD.rows[:4]] == ["full", "schedule", "schedule", "DDIM"]
    assert {family_of(row) for row in CROWD.rows} == {"full", "schedule", "DDIM", "UniPC", "DPM++ 2M"}
    bench_picture([CROWD], tmp_path / "p.png")
    families = ("#1d3557", "#d1495b", "#c27c0e", "#8a5a9e", "#5b8e7d")
    assert {tuple(bytes.fromhex(colour[1:])) for colour in families} <= colours_of(tmp_path / "p.png")


def test_schedules_samplers_and_the_full_run_have_shapes_of_their_own():
    shapes = [Mark(1, row(kind, kind, 100), "#000000").shape["marker"] for kind in ("schedule", "sampler", "full")]
    assert len(set(shapes)) == 3


@pytest.mark.parametrize("report", [CROWD, *TRACKED], ids=lambda r: getattr(r, "stem", "crowd"))
def test_numbers_cover_neither_each_other_nor_marks_and_leaders_do_not_cross(report, placed, tmp_path: Path):
    report = report if isinstance(report, BenchReport) else load_report(report)
    bench_picture([report], tmp_path / "p.png")
    assert [len(marks) for marks, _ in placed] == [len(report.rows) - 1, len(report.rows)]
    for marks, numbers in placed:
        centres = [((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for _, box in numbers]
        for one, other in combinations(range(len(marks)), 2):
            pair = numbers[one][0], numbers[other][0]
            assert not _overlap(numbers[one][1], numbers[other][1]), f"numbers {pair} overlap"
            leaders = (*centres[one], *marks[one]), (*centres[other], *marks[other])
            assert not intersect(*leaders), f"leaders of {pair} cross"
        assert not [(number, mark) for number, box in numbers for mark in marks if box.padded(1.0).contains(*mark)]


def _overlap(one, other) -> bool:
    """Whether two boxes of digits overlap. Two pixels of a box are the descender, which digits lack."""
    return one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 - 2 and other.y0 < one.y1 - 2


def test_the_legend_names_every_number_and_the_title_the_model(tmp_path: Path):
    bench_picture([CROWD], tmp_path / "p.svg", ["digits"])
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "p.svg").read_text())
    legend = [text for text in texts if re.match(r"\d+  ", text)]
    assert sorted(int(text.split("  ")[0]) for text in legend) == list(range(1, len(CROWD.rows) + 1))
    assert sorted(text.split("  ")[1] for text in legend) == sorted(row.name for row in CROWD.rows)
    assert f"digits: {CROWD.contract.model_class}, DDIM with 20 calls" in texts


def test_a_quick_bench_is_labelled(tmp_path: Path):
    settings = {"images": 16, "repeats": 3, "converged_calls": 100, "batch": 8, "quick": True}
    bench_picture([report_of(row("uniform", "schedule", 100), environment={"bench": settings})], tmp_path / "p.svg")
    assert "Quick bench, not for publication" in (tmp_path / "p.svg").read_text()


def test_without_a_converged_run_there_is_one_panel(tmp_path: Path):
    bench_picture([report_of(row("uniform", "schedule", 100, converged_db=None))], tmp_path / "one.png")
    bench_picture([report_of(row("uniform", "schedule", 100))], tmp_path / "two.png")
    assert Image.open(tmp_path / "two.png").width > 1.5 * Image.open(tmp_path / "one.png").width


def test_nothing_touches_the_border(tmp_path: Path):
    bench_picture([report_of(row("uniform", "schedule", 100, converged_db=None))], tmp_path / "one.png")
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("L"))
    assert min(pixels[:, :4].min(), pixels[:, -4:].min(), pixels[:2].min(), pixels[-2:].min()) == 255


def test_rows_of_one_name_in_several_benches_are_told_apart(tmp_path: Path):
    other = report_of(row("uniform", "schedule", 120, 36.0), row("searched", "schedule", 90, 38.0))
    bench_picture([CROWD, other], tmp_path / "p.svg", ["monday", "tuesday"])
    names = re.findall(r"<!-- \d+  (.*?) -->", (tmp_path / "p.svg").read_text())
    assert {"uniform (monday)", "uniform (tuesday)", "full (tuesday)", "searched", "deepcache"} <= set(names)
    assert "uniform" not in names


def test_benches_of_different_contracts_are_refused(tmp_path: Path):
    other = replace(CROWD, contract=replace(CROWD.contract, model_digest="0" * 64))
    with pytest.raises(InputError, match="another bench was made for model_digest"):
        bench_picture([CROWD, other], tmp_path / "p.png")
    with pytest.raises(UsageError, match="a picture needs at least one bench"):
        bench_picture([], tmp_path / "p.png")
    with pytest.raises(UsageError, match=r"must end in \.png or \.svg"):
        bench_picture([CROWD], tmp_path / "p.pdf")
    assert not list(tmp_path.iterdir())

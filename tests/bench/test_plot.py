"""The picture of a bench exists, is equal for equal input, and names everything without overlap."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dipgo_deploy.bench import plot_panel
from dipgo_deploy.bench.plot import bench_picture
from dipgo_deploy.core.errors import InputError, UsageError
from tests.bench.boxes import collisions
from tests.bench.reports import CROWD, report_of, row


def colours(path: Path) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    return {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_equal_reports_give_equal_files(suffix, tmp_path: Path):
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        bench_picture([CROWD], path)
    assert first.read_bytes() == second.read_bytes()
    assert b"<dc:date>" not in first.read_bytes()


def test_each_kind_has_a_colour_and_a_shape_of_its_own(tmp_path: Path):
    looks = plot_panel.LOOKS.values()
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == 3
    bench_picture([CROWD], tmp_path / "p.png")
    wanted = {tuple(bytes.fromhex(look.colour[1:])) for look in looks}
    assert wanted <= colours(tmp_path / "p.png")


def test_no_name_covers_another(tmp_path: Path, monkeypatch):
    panels, place = [], plot_panel.place_labels
    monkeypatch.setattr(plot_panel, "place_labels", lambda *given: panels.append(place(*given)) or panels[-1])
    bench_picture([CROWD], tmp_path / "p.png")
    assert [len(boxes) for boxes in panels] == [len(CROWD.rows) - 1, len(CROWD.rows)]
    assert not [pair for boxes in panels for pair in collisions(boxes)]


def test_without_a_converged_run_there_is_one_panel(tmp_path: Path):
    bench_picture([report_of(row("uniform", "schedule", 100, converged_db=None))], tmp_path / "one.png")
    bench_picture([CROWD], tmp_path / "two.png")
    assert Image.open(tmp_path / "two.png").width == 2 * Image.open(tmp_path / "one.png").width


def test_nothing_touches_the_border(tmp_path: Path):
    bench_picture([report_of(row("uniform", "schedule", 100, converged_db=None))], tmp_path / "one.png")
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("L"))
    assert min(pixels[:, :4].min(), pixels[:, -4:].min(), pixels[:2].min(), pixels[-2:].min()) == 255


def test_rows_of_one_name_in_several_benches_are_told_apart(tmp_path: Path):
    other = report_of(row("uniform", "schedule", 120, 36.0), row("searched", "schedule", 90, 38.0))
    bench_picture([CROWD, other], tmp_path / "p.svg", ["monday", "tuesday"])
    names = re.findall(r"<!-- (.*?) -->", (tmp_path / "p.svg").read_text())
    assert {"uniform (monday)", "uniform (tuesday)", "full (tuesday)", "searched", "deepcache"} <= set(names)
    assert "uniform" not in names


def test_benches_of_different_contracts_are_refused(tmp_path: Path):
    other = replace(CROWD, contract=replace(CROWD.contract, model_digest="0" * 64))
    with pytest.raises(InputError, match="another bench was made for model_digest"):
        bench_picture([CROWD, other], tmp_path / "p.png")
    with pytest.raises(UsageError, match="a picture needs a bench"):
        bench_picture([], tmp_path / "p.png")
    with pytest.raises(UsageError, match=r"neither \.png nor \.svg"):
        bench_picture([CROWD], tmp_path / "p.pdf")
    assert not list(tmp_path.iterdir())

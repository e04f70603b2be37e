"""Pictures exist, are equal for equal input, and show what the schedule says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dipgo_deploy.bench.schedule_picture import schedule_picture
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from tests.bench.colours import colours_of
from tests.search.graphs import chain_like, contract_of, unet_like

GRAPH = unet_like()


def random_schedule_of(steps: int) -> Schedule:
    return schedule_by_rule(GRAPH, contract_of(GRAPH, steps), SearchOptions("random", 0.6))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_equal_schedules_give_equal_files(tmp_path: Path, suffix: str) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for path in (first, second):
        schedule_picture(random_schedule_of(20), path, GRAPH)
    assert first.read_bytes() == second.read_bytes()
    assert b"<dc:date>" not in first.read_bytes() and b"matplotlib.org" not in first.read_bytes()[-200:]


def test_the_four_kinds_of_cells_have_fourcolours_of(tmp_path: Path) -> None:
    schedule = random_schedule_of(20)
    schedule = replace(schedule, forecasts={(t, b): (1.0,) for t, b in _reused(schedule)[:10]})
    dark, dead, forecast, young = (0x1D, 0x35, 0x57), (0xEF, 0xA5, 0x8D), (0xB5, 0x17, 0x9E), (0x6F, 0xB1, 0xD6)
    schedule_picture(schedule, tmp_path / "with.png", GRAPH)
    assert {dark, dead, forecast, young} <= colours_of(tmp_path / "with.png")
    schedule_picture(schedule, tmp_path / "without.png")
    assert dead not in colours_of(tmp_path / "without.png")


def test_pictures_grow_with_blocks_and_steps_but_not_without_bound(tmp_path: Path) -> None:
    sizes = {}
    for length, steps in ((9, 20), (89, 20), (9, 250)):
        graph = chain_like(length)
        options = SearchOptions("fora", 0.5, "residual")
        schedule_picture(schedule_by_rule(graph, contract_of(graph, steps), options), tmp_path / "p.png", graph)
        sizes[length, steps] = Image.open(tmp_path / "p.png").size
    assert sizes[89, 20][1] > 2 * sizes[9, 20][1] and sizes[9, 250][0] > 1.5 * sizes[9, 20][0]
    assert max(max(size) for size in sizes.values()) <= 2400


def test_only_png_and_svg_are_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.png or \.svg, got .*a\.pdf: rename it"):
        schedule_picture(random_schedule_of(5), tmp_path / "a.pdf")
    assert not list(tmp_path.iterdir())


def _reused(schedule: Schedule) -> list[tuple[int, str]]:
    return [(t, b) for t in range(schedule.steps) for b in schedule.blocks if not schedule.is_computed(t, b)]

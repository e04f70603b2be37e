"""The picture of a bench, or of several: quality against latency, every contender as a numbered mark in each panel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dipgo_deploy.bench.bench_panel import Mark, Panel
from dipgo_deploy.bench.figure import FAINT, INK, new_figure
from dipgo_deploy.bench.report import BenchReport, Percentiles, Row
from dipgo_deploy.bench.report_table import quick_note
from dipgo_deploy.core.contract import check_same_contract
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bench_picture", "family_of"]

_QUALITIES: tuple[tuple[str, Callable[[Row], Percentiles | None]], ...] = (
    ("to the full run", lambda row: None if row.kind == "full" else row.psnr_full_db),
    ("to the converged run", lambda row: row.psnr_converged_db),
)
_SCHEDULE, _FULL = "#1d3557", "#5b8e7d"
_FAMILIES = ("#d1495b", "#c27c0e", "#8a5a9e", "#2a9d8f", "#7f6a52", "#5f6c7b")
"""Colours of sampler families, in alphabetical order of the families. They repeat after six families."""

_PANEL_WIDTH, _HEIGHT, _LEGEND_WIDTH = 6.0, 5.6, 2.9
"""Inches."""


def bench_picture(reports: Sequence[BenchReport], path: Path, names: Sequence[str] = ()) -> None:
    """Draw median PSNR against median latency.

    A second panel shows the PSNR to the converged run, if there is any. A thin line reaches down to the tenth
    percentile over images, and a thick line spans the 95 % interval of the median.

    Args:
        reports: one or more benches of one contract.
        path: a .png or .svg file.
        names: names of the reports, for the title and to distinguish rows with the same name.

    Raises:
        UsageError: no report, or another suffix.
        InputError: reports of different contracts, or ``path`` cannot be written.
    """
    if not reports:
        raise UsageError("a picture needs at least one bench, got none")
    for report in reports[1:]:
        check_same_contract(reports[0].contract, report.contract, "another bench")
    marks = _marks(_distinct_rows(reports, names))
    panels = [(title, [(mark, q) for mark in marks if (q := quality(mark.row))]) for title, quality in _QUALITIES]
    panels = [panel for panel in panels if panel[1]] or panels[:1]
    width = _PANEL_WIDTH * len(panels) + _LEGEND_WIDTH
    with new_figure(path, figsize=(width, _HEIGHT), dpi=72) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        figure.subplots_adjust(left=0.62 / width, right=1 - _LEGEND_WIDTH / width, bottom=0.1, top=0.85, wspace=0.13)
        for ax, (title, points) in zip(axes, panels, strict=True):
            Panel(ax, f"PSNR {title}, dB", points, _unplaced(marks, points)).draw()
        _draw_title(figure, reports, names, width)
        _draw_legend(figure, marks, width)


def family_of(row: Row) -> str:
    """``schedule``, ``full``, or the family of a plain sampler, such as ``DPM++ 2M`` of ``DPM++ 2M-10 karras``."""
    family = re.match(r"(.+?)-\d+\b", row.name) if row.kind == "sampler" else None
    return family.group(1) if family else row.kind


def _marks(rows: Sequence[Row]) -> list[Mark]:
    """Marks numbered from 1: schedules, sampler families, the full run. The legend has this order."""
    colours = _colours(rows)
    order = sorted(rows, key=lambda row: list(colours).index(family_of(row)))
    return [Mark(number, row, colours[family_of(row)]) for number, row in enumerate(order, 1)]


def _colours(rows: Sequence[Row]) -> Mapping[str, str]:
    families = sorted({family_of(row) for row in rows if row.kind == "sampler"})
    samplers = {family: _FAMILIES[index % len(_FAMILIES)] for index, family in enumerate(families)}
    return {"schedule": _SCHEDULE, **samplers, "full": _FULL}


def _unplaced(marks: Sequence[Mark], points: Sequence[tuple[Mark, Percentiles]]) -> list[Mark]:
    """The full runs that are the reference of a panel, not points in the panel."""
    placed = {mark.number for mark, _ in points}
    return [mark for mark in marks if mark.row.kind == "full" and mark.number not in placed]


def _distinct_rows(reports: Sequence[BenchReport], names: Sequence[str]) -> list[Row]:
    """All rows. If several reports have a row of the same name, the report's name is added."""
    counts = Counter(row.name for report in reports for row in report.rows)
    labels = [*names, *(f"bench {i + 1}" for i in range(len(names), len(reports)))]
    return [
        row if counts[row.name] == 1 else replace(row, name=f"{row.name} ({label})")
        for report, label in zip(reports, labels, strict=True)
        for row in report.rows
    ]


def _draw_title(figure: Figure, reports: Sequence[BenchReport], names: Sequence[str], width: float) -> None:
    report = reports[0]
    contract, settings = report.contract, report.environment.get("bench", {})
    sampler = contract.sampler.class_name.removesuffix("Scheduler")
    machine = " and ".join(dict.fromkeys(str(r.environment.get("processor", "?")) for r in reports))
    device = f"{settings.get('device', '?')}: {machine}" if settings.get("device") == "cpu" else settings.get("device")
    left = 0.15 / width
    title = f"{contract.model_class}, {sampler} with {contract.sampler.calls} calls"
    figure.text(left, 0.955, ": ".join([" and ".join(names), title] if names else [title]), fontsize=11, color=INK)
    quick = [quick_note(r) for r in reports if r.environment.get("bench", {}).get("quick")]
    sizes = f"batches of {settings.get('batch', '?')}, {settings.get('images', '?')} images, {device}"
    figure.text(left, 0.915, ". ".join([sizes, *quick[:1]]), fontsize=8, color=FAINT)


def _draw_legend(figure: Figure, marks: Sequence[Mark], width: float) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", color=mark.colour, label=f"{mark.number}  {mark.row.name}", **mark.shape)
        for mark in marks
    ]
    lines = [
        Line2D([], [], color=FAINT, linewidth=0.8, label="down to the 10th percentile"),
        Line2D([], [], color=FAINT, linewidth=3, alpha=0.5, label="95 % interval of the median"),
    ]
    # Thirty rows fill the height at this size. More rows shrink.
    size = min(8.0, 8.0 * 30 / (len(handles) + len(lines)))
    left = 1 - (_LEGEND_WIDTH - 0.1) / width
    figure.legend(
        handles=[*handles, *lines], labelcolor=[*(mark.colour for mark in marks), FAINT, FAINT], loc="upper left",
        bbox_to_anchor=(left, 0.87), frameon=False, fontsize=size, handlelength=1.4, handletextpad=0.6,
        labelspacing=0.55,
    )  # fmt: skip

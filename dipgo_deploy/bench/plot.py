"""Quality against latency: every contender of a bench, or of several, as one labelled mark in each panel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipgo_deploy.bench.canvas import FAINT, new_figure
from dipgo_deploy.bench.plot_panel import LOOKS, Panel
from dipgo_deploy.bench.report import BenchReport, Percentiles, Row
from dipgo_deploy.core.contract import check_same_contract
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bench_picture"]


_PANELS: tuple[tuple[str, Callable[[Row], Percentiles | None]], ...] = (
    ("to the full run", lambda row: None if row.kind == "full" else row.psnr_full_db),
    ("to the converged run", lambda row: row.psnr_converged_db),
)
_WIDE, _HIGH = 7.2, 5.6
"""Inches of one panel."""


def bench_picture(reports: Sequence[BenchReport], path: Path, names: Sequence[str] = ()) -> None:
    """Draw median PSNR against median latency to ``path`` (.png or .svg).

    The second panel shows the converged run, where there is one. A thin line reaches down to the tenth percentile over
    images, a thick one spans the median's 95 % interval. ``names`` of the reports tell rows of one name apart.

    Raises UsageError for a path that is no picture or for no report, InputError for reports of different contracts.
    """
    if not reports:
        raise UsageError("a picture needs a bench, found none: give one or more")
    for report in reports[1:]:
        check_same_contract(reports[0].contract, report.contract, "another bench")
    rows = _distinct(reports, names)
    shown = [(title, [(row, found) for row in rows if (found := quality(row))]) for title, quality in _PANELS]
    shown = [one for one in shown if one[1]] or shown[:1]
    with new_figure(path, figsize=(_WIDE * len(shown), _HIGH), dpi=72) as figure:
        columns = figure.subplots(1, len(shown), squeeze=False)[0]
        edge = 0.62 / (_WIDE * len(shown))
        figure.subplots_adjust(left=edge, right=1 - 0.25 * edge, bottom=0.165, top=0.865, wspace=0.13)
        panels = [
            Panel(axes, f"PSNR {title}, dB", points, _without(rows, points))
            for axes, (title, points) in zip(columns, shown, strict=True)
        ]
        for panel in panels:
            panel.draw()
        _draw_title(figure, reports)
        _draw_legend(figure, rows)
        for panel in panels:
            panel.draw_labels()


def _without(rows: Sequence[Row], points: Sequence[tuple[Row, Percentiles]]) -> list[Row]:
    """The full runs that are no points."""
    names = {row.name for row, _ in points}
    return [row for row in rows if row.kind == "full" and row.name not in names]


def _distinct(reports: Sequence[BenchReport], names: Sequence[str]) -> list[Row]:
    """All rows, those of one name in several reports with the report's name behind."""
    counts = Counter(row.name for report in reports for row in report.rows)
    labels = [*names, *(f"bench {i + 1}" for i in range(len(names), len(reports)))]
    return [
        row if counts[row.name] == 1 else replace(row, name=f"{row.name} ({label})")
        for report, label in zip(reports, labels, strict=True)
        for row in report.rows
    ]


def _draw_title(figure: Figure, reports: Sequence[BenchReport]) -> None:
    report = reports[0]
    contract, settings = report.contract, report.environment.get("bench", {})
    sampler = contract.sampler.class_name.removesuffix("Scheduler")
    machine = " and ".join(dict.fromkeys(str(r.environment.get("processor", "?")) for r in reports))
    device = f"{settings.get('device', '?')}: {machine}" if settings.get("device") == "cpu" else settings.get("device")
    figure.text(0.012, 0.965, f"{contract.model_class}, {sampler} with {contract.sampler.calls} calls", fontsize=11)
    figure.text(
        0.012, 0.925, f"batches of {settings.get('batch', '?')}, {settings.get('images', '?')} images, {device}",
        fontsize=8, color=FAINT,
    )  # fmt: skip


def _draw_legend(figure: Figure, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    kinds = {row.kind for row in rows}
    handles: list[Any] = [
        Line2D([], [], linestyle="", marker=look.marker, color=look.colour, markersize=look.size, label=look.legend)
        for kind, look in LOOKS.items()
        if kind in kinds
    ]
    handles.append(Line2D([], [], color=FAINT, linewidth=0.8, label="down to the 10th percentile"))
    handles.append(Line2D([], [], color=FAINT, linewidth=3, alpha=0.5, label="95 % interval of the median"))
    figure.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.005, 0.0), ncols=len(handles), frameon=False, fontsize=7.5,
        columnspacing=1.4, handletextpad=0.5, handlelength=1.6,
    )  # fmt: skip

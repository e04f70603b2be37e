"""The picture of a schedule: blocks × steps, and below the blocks the kept share of every step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dipgo_deploy.bench.figure import FAINT, new_figure
from dipgo_deploy.bench.grid import (
    COMPUTED,
    DEAD,
    REUSED,
    ScheduleGrid,
    heading_line,
    read_grid,
    sampler_line,
    short_names,
)
from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["schedule_picture"]

_COMPUTED, _DEAD, _FORECAST = "#1d3557", "#efa58d", "#b5179e"
_YOUNG, _OLD = "#6fb1d6", "#eef6fb"


def schedule_picture(
    schedule: Schedule, path: Path | str, graph: BlockGraph | None = None, scores: np.ndarray | None = None
) -> None:
    """Draw a schedule. Computed cells are dark, and reused cells are lighter the older their feature.

    Args:
        schedule: the schedule.
        path: a .png or .svg file.
        graph: its BlockGraph. If given, costs are MACs, and cells that are computed but never read are marked.
        scores: learned scores (steps, blocks). Their ranks are drawn above the schedule.

    Raises:
        UsageError: another suffix.
        InputError: ``path`` cannot be written.
    """
    grid = read_grid(schedule, graph)
    rows, columns = grid.state.shape
    height = _row_height(rows)
    panels = 1 if scores is None else 2
    size = (min(max(3 + 0.15 * columns, 7.5), 16), panels * rows * height + 2.5)
    with new_figure(Path(path), figsize=size, layout="constrained") as figure:
        heights = [*[rows * height] * panels, 0.8]
        *above, top, strip = figure.subplots(panels + 1, 1, sharex=True, height_ratios=heights)
        if scores is not None:
            _draw_scores(above[0], schedule, scores, height)
        _draw_states(top, schedule, grid, height)
        _draw_kept(strip, grid)
        _draw_title(figure, schedule, grid)
        _draw_legend(figure, grid)


def _row_height(rows: int) -> float:
    """Inches: roomy for ten blocks, just legible for ninety blocks."""
    return min(0.3, max(0.13, 6 / rows))


def _draw_states(axes: Axes, schedule: Schedule, grid: ScheduleGrid, height: float) -> None:
    rows, columns = grid.state.shape
    axes.imshow(_colours(grid), aspect="auto", interpolation="none", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    size = min(9.0, 72 * height * 0.62)
    axes.set_yticks(range(rows), short_names(schedule.blocks), fontsize=size)
    axes.tick_params(length=0, labelbottom=False)
    axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=0.8 if rows <= 40 else 0.4)
    if columns <= 120:
        axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=0.6)
    at, steps = np.nonzero(grid.forecast)
    axes.scatter(steps, at, s=min(16.0, (72 * height * 0.35) ** 2), color=_FORECAST, linewidths=0)
    counts = axes.secondary_yaxis("right")
    totals = (grid.state == COMPUTED).sum(axis=1)
    counts.set_yticks(range(rows), [f"{total}\N{MULTIPLICATION SIGN}" for total in totals], fontsize=size, color=FAINT)
    counts.tick_params(length=0)
    for edge in (*axes.spines.values(), *counts.spines.values()):
        edge.set_visible(False)


def _draw_scores(axes: Axes, schedule: Schedule, scores: np.ndarray, height: float) -> None:
    """Draw ranks of the scores. Scores span decades, so their values would show as two colours only."""
    ranks = np.argsort(np.argsort(scores.reshape(-1), kind="stable"), kind="stable").reshape(scores.shape)
    steps, rows = scores.shape
    extent = (-0.5, steps - 0.5, rows - 0.5, -0.5)
    axes.imshow(ranks.T / max(ranks.max(), 1), aspect="auto", interpolation="none", extent=extent, cmap="cividis")
    axes.set_yticks(range(rows), short_names(schedule.blocks), fontsize=min(9.0, 72 * height * 0.62))
    axes.set_title("what the search learned: dark is given up first, bright is kept longest", fontsize=8, color=FAINT)
    axes.tick_params(length=0, labelbottom=False)
    for edge in axes.spines.values():
        edge.set_visible(False)


def _colours(grid: ScheduleGrid) -> np.ndarray:
    """RGB of shape (blocks, steps, 3). Ages are on a logarithmic scale, so that young features differ visibly."""
    from matplotlib.colors import to_rgb

    young, old = np.array(to_rgb(_YOUNG)), np.array(to_rgb(_OLD))
    share = np.log(np.maximum(grid.age, 1)) / np.log(max(2, grid.age.max()))
    colours: np.ndarray = young + (old - young) * share[..., None]
    colours[grid.state == COMPUTED] = to_rgb(_COMPUTED)
    colours[grid.state == DEAD] = to_rgb(_DEAD)
    return colours


def _draw_kept(axes: Axes, grid: ScheduleGrid) -> None:
    from matplotlib.ticker import MaxNLocator

    percent = 100 * grid.kept
    axes.bar(np.arange(len(percent)), percent, width=0.9 if len(percent) <= 120 else 1.0, color=_COMPUTED, linewidth=0)
    axes.axhline(percent.mean(), color=_FORECAST, linewidth=0.8, linestyle="--")
    axes.annotate(
        f"mean {percent.mean():.0f} %", (1.005, percent.mean()), xycoords=("axes fraction", "data"),
        fontsize=8, color=_FORECAST, va="center",
    )  # fmt: skip
    axes.set_ylim(0, 105)
    axes.set_yticks([0, 50, 100], ["0", "50", "100 %"], fontsize=8)
    axes.set_ylabel("MACs" if grid.exact else "blocks", fontsize=8)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(length=2, color=FAINT)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def _draw_title(figure: Figure, schedule: Schedule, grid: ScheduleGrid) -> None:
    figure.suptitle(
        f"{heading_line(schedule, grid)}\n{schedule.contract.model_class}; {sampler_line(schedule, grid)}", fontsize=10
    )


def _draw_legend(figure: Figure, grid: ScheduleGrid) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    oldest = int(grid.age.max())
    handles: list[Any] = [Patch(color=_COMPUTED, label="computed")]
    if (grid.state == REUSED).any():
        handles.append(Patch(facecolor=_YOUNG, label="reused, 1 step old"))
    if oldest > 1:
        handles.append(Patch(facecolor=_OLD, edgecolor=_YOUNG, linewidth=0.5, label=f"reused, {oldest} steps old"))
    if (grid.state == DEAD).any():
        handles.append(Patch(color=_DEAD, label="computed but never read: does not run"))
    if grid.forecast.any():
        handles.append(Line2D([], [], linestyle="", marker="o", color=_FORECAST, markersize=4, label="forecast"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)

"""Pictures: a schedule as blocks × steps, and grids of images. Equal input gives equal files, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dipgo_deploy.bench.canvas import FAINT, INK, new_figure
from dipgo_deploy.bench.cells import COMPUTED, DEAD, REUSED, Cells, origin_line, read_cells, sampler_line, short_names
from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["image_grid", "schedule_picture"]

_COMPUTED, _DEAD, _FORECAST = "#1d3557", "#efa58d", "#b5179e"
_YOUNG, _OLD = "#6fb1d6", "#eef6fb"


def schedule_picture(
    schedule: Schedule, path: Path | str, graph: BlockGraph | None = None, scores: np.ndarray | None = None
) -> None:
    """Draw ``schedule`` as blocks × steps to ``path`` (.png or .svg), with what every step costs below.

    Computed cells are dark, reused ones lighter the older their feature. With the BlockGraph, cells that are computed
    but never read stand out, and costs are MACs. ``scores`` (steps, blocks), what a search learnt, stand above it.
    Raises UsageError for another suffix.
    """
    cells = read_cells(schedule, graph)
    rows, columns = cells.state.shape
    height = _row_height(rows)
    panels = 1 if scores is None else 2
    size = (min(max(3 + 0.15 * columns, 7.5), 16), panels * rows * height + 2.5)
    with new_figure(Path(path), figsize=size, layout="constrained") as figure:
        heights = [*[rows * height] * panels, 0.8]
        *above, top, strip = figure.subplots(panels + 1, 1, sharex=True, height_ratios=heights)
        if scores is not None:
            _draw_scores(above[0], schedule, scores, height)
        _draw_cells(top, schedule, cells, height)
        _draw_kept(strip, cells)
        _draw_title(figure, schedule, cells)
        _draw_legend(figure, cells)


def _row_height(rows: int) -> float:
    """Inches: roomy for ten blocks, just legible for ninety."""
    return min(0.3, max(0.13, 6 / rows))


def _draw_cells(axes: Axes, schedule: Schedule, cells: Cells, height: float) -> None:
    rows, columns = cells.state.shape
    axes.imshow(_colours(cells), aspect="auto", interpolation="none", extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    size = min(9.0, 72 * height * 0.62)
    axes.set_yticks(range(rows), short_names(schedule.blocks), fontsize=size)
    axes.tick_params(length=0, labelbottom=False)
    axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=0.8 if rows <= 40 else 0.4)
    if columns <= 120:
        axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=0.6)
    at, steps = np.nonzero(cells.forecast)
    axes.scatter(steps, at, s=min(16.0, (72 * height * 0.35) ** 2), color=_FORECAST, linewidths=0)
    counts = axes.secondary_yaxis("right")
    totals = (cells.state == COMPUTED).sum(axis=1)
    counts.set_yticks(range(rows), [f"{total}\N{MULTIPLICATION SIGN}" for total in totals], fontsize=size, color=FAINT)
    counts.tick_params(length=0)
    for edge in (*axes.spines.values(), *counts.spines.values()):
        edge.set_visible(False)


def _draw_scores(axes: Axes, schedule: Schedule, scores: np.ndarray, height: float) -> None:
    """Ranks of the scores, from the entry that is given up first to the one that is kept longest."""
    ranks = np.argsort(np.argsort(scores.reshape(-1), kind="stable"), kind="stable").reshape(scores.shape)
    steps, rows = scores.shape
    extent = (-0.5, steps - 0.5, rows - 0.5, -0.5)
    axes.imshow(ranks.T / max(ranks.max(), 1), aspect="auto", interpolation="none", extent=extent, cmap="cividis")
    axes.set_yticks(range(rows), short_names(schedule.blocks), fontsize=min(9.0, 72 * height * 0.62))
    axes.set_title("what the search learnt: dark is given up first, bright is kept longest", fontsize=8, color=FAINT)
    axes.tick_params(length=0, labelbottom=False)
    for edge in axes.spines.values():
        edge.set_visible(False)


def _colours(cells: Cells) -> np.ndarray:
    """RGB of shape (blocks, steps, 3); ages on a logarithmic scale, so that young ones differ visibly."""
    from matplotlib.colors import to_rgb

    young, old = np.array(to_rgb(_YOUNG)), np.array(to_rgb(_OLD))
    share = np.log(np.maximum(cells.age, 1)) / np.log(max(2, cells.age.max()))
    colours: np.ndarray = young + (old - young) * share[..., None]
    colours[cells.state == COMPUTED] = to_rgb(_COMPUTED)
    colours[cells.state == DEAD] = to_rgb(_DEAD)
    return colours


def _draw_kept(axes: Axes, cells: Cells) -> None:
    from matplotlib.ticker import MaxNLocator

    percent = 100 * cells.kept
    axes.bar(np.arange(len(percent)), percent, width=0.9 if len(percent) <= 120 else 1.0, color=_COMPUTED, linewidth=0)
    axes.axhline(percent.mean(), color=_FORECAST, linewidth=0.8, linestyle="--")
    axes.annotate(
        f"mean {percent.mean():.0f} %", (1.005, percent.mean()), xycoords=("axes fraction", "data"),
        fontsize=8, color=_FORECAST, va="center",
    )  # fmt: skip
    axes.set_ylim(0, 105)
    axes.set_yticks([0, 50, 100], ["0", "50", "100 %"], fontsize=8)
    axes.set_ylabel("MACs" if cells.exact else "blocks", fontsize=8)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(length=2, color=FAINT)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def _draw_title(figure: Figure, schedule: Schedule, cells: Cells) -> None:
    figure.suptitle(
        f"{origin_line(schedule, cells)}\n{schedule.contract.model_class}; {sampler_line(schedule, cells)}", fontsize=10
    )


def _draw_legend(figure: Figure, cells: Cells) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    oldest = int(cells.age.max())
    handles: list[Any] = [Patch(color=_COMPUTED, label="computed")]
    if (cells.state == REUSED).any():
        handles.append(Patch(facecolor=_YOUNG, label="reused, 1 step old"))
    if oldest > 1:
        handles.append(Patch(facecolor=_OLD, edgecolor=_YOUNG, linewidth=0.5, label=f"reused, {oldest} steps old"))
    if (cells.state == DEAD).any():
        handles.append(Patch(color=_DEAD, label="computed in vain: not run"))
    if cells.forecast.any():
        handles.append(Line2D([], [], linestyle="", marker="o", color=_FORECAST, markersize=4, label="forecast"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)


def image_grid(
    images: np.ndarray, path: Path | str, columns: int, scale: int = 6, labels: Sequence[str] | None = None
) -> None:
    """Write ``images`` (N, C, H, W) in [-1, 1], C 1 or 3, row by row to a PNG, each pixel ``scale`` wide.

    ``labels`` stand below the images. Raises UsageError for other shapes.
    """
    from PIL import Image, ImageDraw

    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images) or columns < 1:
        raise UsageError(f"images of shape {images.shape} in {columns} columns make no grid: give (N, 1 or 3, H, W)")
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"{len(labels)} labels for {len(images)} images: give one each")
    gap, below = max(2, scale), 14 if labels is not None else 0
    high, wide = (size * scale for size in images.shape[2:])
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (wide + gap) + gap, rows * (high + below + gap) + gap), "white")
    pen = ImageDraw.Draw(canvas)
    for index, image in enumerate(images):
        left, top = gap + index % columns * (wide + gap), gap + index // columns * (high + below + gap)
        canvas.paste(Image.fromarray(_pixels(image)).resize((wide, high), Image.Resampling.NEAREST), (left, top))
        if labels is not None:
            pen.text((left + wide // 2, top + high + 1), labels[index], fill=INK, anchor="ma")
    buffer = BytesIO()
    canvas.save(buffer, format="PNG")
    write_atomic(Path(path), buffer.getvalue())


def _pixels(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [-1, 1] to (H, W, 3) bytes; what lies outside is clipped."""
    values = np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.repeat(values, 3, axis=0).transpose(1, 2, 0) if len(values) == 1 else values.transpose(1, 2, 0)

"""One panel of a bench picture: marks with whiskers over a logarithmic latency, and a name beside each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING, Any

from dipgo_deploy.bench.canvas import FAINT, INK
from dipgo_deploy.bench.labels import Box, leader_ends, place_labels
from dipgo_deploy.bench.report import Percentiles, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LOOKS", "Panel"]


@dataclass(frozen=True)
class Look:
    """How a kind of contender is drawn; ``legend`` names it."""

    colour: str
    marker: str
    size: float
    legend: str


LOOKS = {
    "schedule": Look("#1d3557", "o", 8.0, "schedule"),
    "sampler": Look("#d1495b", "^", 6.5, "plain sampler"),
    "full": Look("#5b8e7d", "D", 7.5, "full run"),
}
"""Every kind has a colour and a shape of its own."""

_FONT = 7.5


@dataclass(frozen=True)
class Panel:
    """Axes with what they show.

    ``points`` are rows with their quality; ``lines`` rows that have none, being the reference: lines at their latency.
    """

    axes: Axes
    title: str
    points: Sequence[tuple[Row, Percentiles]]
    lines: Sequence[Row]

    def draw(self) -> None:
        """Everything but the names."""
        self._draw_frame()
        self._draw_ticks()
        for row in self.lines:
            self._draw_latency(row)
        for row, quality in self.points:
            self._draw_point(row, quality)

    def _draw_frame(self) -> None:
        axes = self.axes
        latencies = [row.latency_ms["p50"] for row in (*(row for row, _ in self.points), *self.lines)]
        room = 10 ** max(0.18 * log10(max(latencies) / min(latencies)), 0.11)
        axes.set_xscale("log")
        axes.set_xlim(min(latencies) / room, max(latencies) * room)
        bottom = min((quality["p10"] for _, quality in self.points), default=0.0)
        top = max((quality["p50_high"] for _, quality in self.points), default=1.0)
        margin = max(0.07 * (top - bottom), 0.5)
        axes.set_ylim(bottom - margin, top + margin)
        axes.set_title(self.title, fontsize=9, loc="left", color=INK)
        axes.set_xlabel("latency of a batch, ms (median)", fontsize=8.5, color=INK)

    def _draw_ticks(self) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes = self.axes
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low > 4 else tuple(range(1, 10))))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=2.5, color=FAINT, labelcolor=FAINT, labelsize=8)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#bbbbbb")

    def _draw_latency(self, row: Row) -> None:
        look, x = LOOKS[row.kind], row.latency_ms["p50"]
        self.axes.axvline(x, color=look.colour, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        self.axes.annotate(
            row.name, (x, 0.015), xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points",
            fontsize=_FONT, color=look.colour,
        )  # fmt: skip

    def _draw_point(self, row: Row, quality: Percentiles) -> None:
        axes, look, x = self.axes, LOOKS[row.kind], row.latency_ms["p50"]
        order = 3 if row.kind == "schedule" else 2
        axes.vlines(x, quality["p10"], quality["p50"], color=look.colour, linewidth=0.8, alpha=0.55, zorder=order)
        axes.vlines(
            x, quality["p50_low"], quality["p50_high"], color=look.colour, linewidth=3, alpha=0.35, zorder=order
        )
        axes.plot(
            [x], [quality["p50"]], marker=look.marker, markersize=look.size, color=look.colour,
            markeredgecolor="white", markeredgewidth=0.8, zorder=order + 2,
        )  # fmt: skip

    def draw_labels(self) -> None:
        """Names beside their marks; one that had to move away hangs on a thin line. To be called at 72 dpi, last."""
        frame = self.axes.get_window_extent()
        marks, taken = [], [self._line_box(row) for row in self.lines]
        for row, quality in self.points:
            x, y = self._place(row, quality["p50"])
            low, high = (self._place(row, quality[name])[1] for name in ("p10", "p50_high"))
            marks.append((x, y))
            taken.append(Box(x - 2, low, x + 2, high))
        sizes = [self._extent(row) for row, _ in self.points]
        boxes = place_labels(marks, sizes, taken, Box(frame.x0, frame.y0, frame.x1, frame.y1))
        for (row, _), mark, box in zip(self.points, marks, boxes, strict=True):
            self._draw_label(row, mark, box)

    def _place(self, row: Row, quality: float) -> tuple[float, float]:
        """Where a point lies, in points from the figure's corner: one pixel is one point at 72 dpi."""
        x, y = self.axes.transData.transform((row.latency_ms["p50"], quality))
        return float(x), float(y)

    def _line_box(self, row: Row) -> Box:
        frame, x = self.axes.get_window_extent(), self._place(row, 0.0)[0]
        return Box(x - 2, frame.y0, x + 2, frame.y1)

    def _extent(self, row: Row) -> tuple[float, float]:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure: Any = self.axes.figure
        text = figure.text(0, 0, row.name, fontsize=_FONT, weight=_weight(row))
        box = text.get_window_extent(FigureCanvasAgg(figure).get_renderer())
        text.remove()
        return float(box.width), float(box.height)

    def _draw_label(self, row: Row, mark: tuple[float, float], box: Box) -> None:
        from matplotlib.lines import Line2D

        figure: Any = self.axes.figure
        place, look = figure.transFigure.inverted(), LOOKS[row.kind]
        x, y = place.transform((box.left, (box.bottom + box.top) / 2))
        figure.text(x, y, row.name, va="center", fontsize=_FONT, color=look.colour, weight=_weight(row), zorder=8)
        ends = leader_ends(mark, box)
        if ends is not None:
            xs, ys = place.transform(ends).T
            line = Line2D(xs, ys, transform=figure.transFigure, linewidth=0.5, color=look.colour, alpha=0.6)
            figure.add_artist(line)


def _weight(row: Row) -> str:
    return "bold" if row.kind == "schedule" else "normal"

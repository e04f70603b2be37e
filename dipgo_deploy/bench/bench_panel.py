"""One panel of a bench picture: marks with whiskers over a logarithmic latency, and a number next to each mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING, Any

from dipgo_deploy.bench.figure import FAINT, INK
from dipgo_deploy.bench.report import Percentiles, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Mark", "Panel"]

_SHAPES: dict[str, dict[str, Any]] = {
    "schedule": {"marker": "o", "markersize": 8.0},
    "sampler": {"marker": "^", "markersize": 6.5},
    "full": {"marker": "D", "markersize": 7.0},
}

_PLACEMENT: dict[str, Any] = {
    "iter_lim": 300,  # a limit in steps, not in seconds, gives the same picture on every machine
    "expand": (1.3, 1.2),
    "force_text": (0.3, 0.4),
    "force_static": (0.1, 0.2),
    "min_arrow_len": 2,
}
"""Settings of adjustText, found by looking at pictures of fifteen to twenty rows."""


_OBSTACLE = 9.0**2
"""Area in square points that numbers keep free around every mark."""


@dataclass(frozen=True)
class Mark:
    """A row with its number in the legend and the colour of its family."""

    number: int
    row: Row
    colour: str

    @property
    def shape(self) -> dict[str, Any]:
        """Marker options of the row's kind."""
        return _SHAPES[self.row.kind]


@dataclass(frozen=True)
class Panel:
    """Axes and their contents.

    Attributes:
        axes: matplotlib axes.
        title: title of the panel.
        points: marks with their quality.
        references: marks that are the reference of the quality, drawn as lines at their latency.
    """

    axes: Axes
    title: str
    points: Sequence[tuple[Mark, Percentiles]]
    references: Sequence[Mark]

    def draw(self) -> None:
        """Draw everything. The numbers come last, since their places depend on all limits."""
        self._draw_frame()
        self._draw_ticks()
        for mark in self.references:
            self._draw_reference(mark)
        for mark, quality in self.points:
            self._draw_point(mark, quality)
        self._draw_numbers()

    def _draw_frame(self) -> None:
        axes = self.axes
        marks = [*(mark for mark, _ in self.points), *self.references]
        latencies = [mark.row.latency_ms["p50"] for mark in marks]
        room = 10 ** max(0.1 * log10(max(latencies) / min(latencies)), 0.06)
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

    def _draw_reference(self, mark: Mark) -> None:
        x = mark.row.latency_ms["p50"]
        self.axes.axvline(x, color=mark.colour, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        self.axes.annotate(
            str(mark.number), (x, 0.015), xycoords=("data", "axes fraction"), xytext=(4, 0),
            textcoords="offset points", fontsize=8.5, weight="bold", color=mark.colour,
        )  # fmt: skip

    def _draw_point(self, mark: Mark, quality: Percentiles) -> None:
        axes, x = self.axes, mark.row.latency_ms["p50"]
        # Schedules are what the picture is about, so they stand in front.
        order = 3 if mark.row.kind == "schedule" else 2
        axes.vlines(x, quality["p10"], quality["p50"], color=mark.colour, linewidth=0.7, alpha=0.4, zorder=order)
        axes.vlines(x, quality["p50_low"], quality["p50_high"], color=mark.colour, linewidth=3, alpha=0.3, zorder=order)
        axes.plot(
            [x], [quality["p50"]], **mark.shape, color=mark.colour, markeredgecolor="white", markeredgewidth=0.8,
            zorder=order + 2,
        )  # fmt: skip

    def _draw_numbers(self) -> None:
        """Number the marks without overlaps. A thin leader line connects a number that had to move away."""
        from adjustText import adjust_text

        texts = [
            self.axes.text(
                mark.row.latency_ms["p50"], quality["p50"], str(mark.number), fontsize=8.5, weight="bold",
                color=mark.colour, zorder=8,
            )
            for mark, quality in self.points
        ]  # fmt: skip
        # adjustText keeps away from the centres of marks only, unless it is given obstacles of the marks' size.
        obstacles = self.axes.scatter(
            [mark.row.latency_ms["p50"] for mark, _ in self.points],
            [quality["p50"] for _, quality in self.points],
            s=_OBSTACLE,
        )
        leader = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6}
        adjust_text(texts, ax=self.axes, objects=obstacles, arrowprops=leader, **_PLACEMENT)
        obstacles.remove()

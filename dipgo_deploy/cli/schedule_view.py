"""A schedule as block characters, in 80 columns or fewer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from dipgo_deploy.bench.grid import (
    COMPUTED,
    DEAD,
    ScheduleGrid,
    heading_line,
    learned_lines,
    read_grid,
    sampler_line,
    short_names,
)
from dipgo_deploy.cli.program_view import contract_line
from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.schedule import Schedule

__all__ = ["schedule_view"]

_WIDTH = 80
_LOOKS = {"█": "blue", "▒": "cyan", "░": "dim cyan", "~": "magenta", "x": "red"}
_MEANINGS = {
    "█": "computed",
    "▒": "reused, 1 step old",
    "░": "older",
    "~": "forecast",
    "x": "computed but never read",
}
_BARS = " ▁▂▃▄▅▆▇█"


def schedule_view(schedule: Schedule, graph: BlockGraph | None = None) -> RenderableType:
    """A schedule as blocks × steps, with the kept share of every step below.

    Args:
        schedule: what to show. Long runs continue in further chunks of 80 columns, or fewer on a narrow terminal.
        graph: marks blocks that are computed but never read, and makes the shares those of MACs (``papers``).

    Returns:
        A rich renderable.
    """
    return _ScheduleView(schedule, read_grid(schedule, graph))


@dataclass(frozen=True)
class _ScheduleView:
    """A schedule that divides its steps into chunks when the width is known."""

    schedule: Schedule
    cells: ScheduleGrid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        schedule, cells = self.schedule, self.cells
        yield Text(heading_line(schedule, cells), style="bold")
        yield Text(sampler_line(schedule, cells))
        yield from map(Text, learned_lines(schedule))
        yield Text(contract_line(schedule.contract))
        marks = _marks(cells)
        for line in self._lines(marks, min(_WIDTH, options.max_width)):
            line.no_wrap, line.overflow = True, "ignore"
            yield line
        yield _legend(marks)

    def _lines(self, marks: np.ndarray, width: int) -> Iterator[Text]:
        schedule, cells = self.schedule, self.cells
        names = short_names(schedule.blocks)
        margin = max(len(name) for name in (*names, "MACs")) + 1
        chunk = max(10, (width - margin) // 10 * 10)
        for start in range(0, schedule.steps, chunk):
            part = slice(start, start + chunk)
            yield Text(" " * margin + _ruler(start, min(start + chunk, schedule.steps)), style="dim")
            yield from (_row(name, margin, row[part]) for name, row in zip(names, marks, strict=True))
            bars = "".join(_BARS[_bar(share)] for share in cells.kept[part])
            yield Text(("MACs" if cells.exact else "kept").ljust(margin) + bars)


def _marks(cells: ScheduleGrid) -> np.ndarray:
    """One character per cell, shape (blocks, steps)."""
    marks = np.where(cells.age > 1, "░", "▒")
    marks = np.where(cells.forecast, "~", marks)
    marks = np.where(cells.state == DEAD, "x", marks)
    return np.where(cells.state == COMPUTED, "█", marks)


def _bar(share: float) -> int:
    """Height in eighths. Every share above 0 is visible."""
    return int(share > 0) if share < 1 / 8 else min(8, round(8 * share))


def _row(name: str, margin: int, marks: np.ndarray) -> Text:
    line = Text(name.ljust(margin))
    for mark in marks:
        line.append(str(mark), style=_LOOKS[str(mark)])
    return line


def _ruler(start: int, stop: int) -> str:
    """The number of every tenth step above it."""
    return "".join(str(step).ljust(10) for step in range(start, stop, 10))


def _legend(marks: np.ndarray) -> Text:
    shown = [(mark, meaning) for mark, meaning in _MEANINGS.items() if (marks == mark).any()]
    return Text("  ").join(Text.assemble((mark, _LOOKS[mark]), f" {meaning}") for mark, meaning in shown)

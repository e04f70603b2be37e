"""How tables fit the width of a terminal, a pipe or a file."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table

__all__ = ["fitted", "without_boxes"]

_TEXT_WIDTH = 24
"""Narrowest column of text that is still readable."""


def without_boxes(renderable: RenderableType) -> RenderableType:
    """The same tables without lines around cells, for output that programs read.

    Args:
        renderable: a table, a group or any other renderable.

    Returns:
        A renderable whose tables have no box.
    """
    if isinstance(renderable, Group):
        return Group(*map(without_boxes, renderable.renderables))
    if not isinstance(renderable, Table):
        return renderable
    plain = copy(renderable)
    plain.box = None
    return plain


def fitted(renderable: RenderableType, console: Console) -> RenderableType:
    """Divide tables that are wider than the console. Every part repeats the first column.

    Args:
        renderable: a table, a group or any other renderable.
        console: the console that prints the renderable.

    Returns:
        A renderable in which no cell of a table is cut off, unless the console is narrower than two columns.
    """
    if isinstance(renderable, Group):
        return Group(*(fitted(part, console) for part in renderable.renderables))
    if not isinstance(renderable, Table) or _fits(renderable, console):
        return renderable
    return Group(*_parts(renderable, console))


def _parts(table: Table, console: Console) -> list[Table]:
    """The first column with as many of the other columns as fit, again and again."""
    key, *others = table.columns
    parts: list[Table] = []
    while others:
        count = next((n for n in range(len(others), 1, -1) if _fits(_part(table, key, others[:n]), console)), 1)
        parts.append(_part(table, key, others[:count]))
        del others[:count]
    for part in parts[1:]:
        part.title = None
    return parts


def _part(table: Table, key: Column, others: list[Column]) -> Table:
    part = copy(table)
    part.columns = [replace(column, _index=index) for index, column in enumerate((key, *others))]
    return part


def _fits(table: Table, console: Console) -> bool:
    """Whether every cell has the width that it needs. Rich would cut off the rest."""
    _, right, _, left = table.padding
    borders = 0 if table.box is None else len(table.columns) + 1
    needed = sum(_least_width(column, console) + left + right for column in table.columns) + borders
    return needed - (0 if table.pad_edge else left + right) <= console.width


def _least_width(column: Column, console: Console) -> int:
    """Cells of numbers need their whole width. Cells of text may be wrapped, but not to a column of single words."""
    cells = [column.header, *column.cells]
    whole = max(Measurement.get(console, console.options.update(width=10_000), cell).maximum for cell in cells)
    return whole if column.no_wrap else min(whole, _TEXT_WIDTH)

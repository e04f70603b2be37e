"""The view of ``show A --diff B``: every field that differs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dipgo_deploy.core.differences import Difference

__all__ = ["compare_files", "difference_view"]

_LONGEST = 60
"""Characters of a value that are printed."""


def compare_files(first: Path, second: Path) -> tuple[Difference, ...]:
    """Compare two artifacts of one kind.

    Args:
        first: a document that a command wrote. ``bundle.json`` stands for its whole bundle.
        second: the other document.

    Returns:
        The fields that differ.

    Raises:
        UsageError: the documents are of two kinds.
        InputError: a document is damaged.
    """
    from dipgo_deploy.core.differences import differences
    from dipgo_deploy.core.files import format_of

    kinds = format_of(first), format_of(second)
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{first} is a {kinds[0]} file and {second} a {kinds[1]} file: name two artifacts of one kind, such as two "
            "bundles or two schedules"
        )
    return differences(_fields_of(first, kinds[0]), _fields_of(second, kinds[0]))


def _fields_of(file: Path, kind: str) -> dict[str, Any]:
    from dipgo_deploy.core import files
    from dipgo_deploy.core.differences import manifest_fields, program_fields, schedule_fields
    from dipgo_deploy.core.disk import read_json

    if kind == "schedule":
        return schedule_fields(files.load_schedule(file))
    if kind == "program":
        return program_fields(files.load_program(file))
    if kind != "bundle":
        return read_json(file)
    folder = file.parent
    return {
        **schedule_fields(files.load_schedule(folder / "schedule.json")),
        **program_fields(files.load_program(folder / "program.json")),
        **manifest_fields(files.load_manifest(file)),
    }


def difference_view(found: Sequence[Difference], first: Path, second: Path) -> RenderableType:
    """A table of the differences, or one line for equal artifacts.

    Args:
        found: the fields that differ.
        first: the first artifact.
        second: the second artifact.

    Returns:
        A rich renderable.
    """
    from rich.table import Table
    from rich.text import Text

    if not found:
        return Text(f"{first} and {second} do not differ")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("field", no_wrap=True)
    for path in (first, second):
        table.add_column(str(path), overflow="fold")
    for difference in found:
        table.add_row(difference.name, _text(difference.first), _text(difference.second))
    return table


def _text(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

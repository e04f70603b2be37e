"""Long studies in one JSON file. Cells in the file are not run again, and several processes may share the file.

``environment`` of the file is that of its first row. A row from another machine or from other versions has its own.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.runtime.environment import environment

__all__ = ["Row", "completed", "rows_in"]

Row = dict[str, Any]
Cell = TypeVar("Cell")


def rows_in(path: Path, kind: type[Cell]) -> dict[Cell, Row]:
    """The rows of earlier runs by cell.

    Args:
        path: the JSON file. A missing file has no rows.
        kind: the dataclass of the cells.

    Returns:
        The rows.
    """
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {kind(*(row[field.name] for field in fields(kind))): row for row in rows}  # type: ignore[arg-type]


def completed(path: Path, cells: Iterable[Cell], measure: Callable[[Cell], Row]) -> Iterator[Row]:
    """The row of every cell.

    Args:
        path: the JSON file.
        cells: the cells, dataclasses of one kind.
        measure: measures a cell that the file does not have.

    Yields:
        The row from the file, or that of a new measurement, which is first written with its command.
    """
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    for cell in cells:
        if (row := rows_in(path, type(cell)).get(cell)) is None:
            row = {**asdict(cell), **measure(cell), "command": command}  # type: ignore[call-overload]
            here = environment()
            first = json.loads(path.read_text(encoding="utf-8"))["environment"] if path.is_file() else here
            row |= {} if here == first else {"environment": here}
            rows = {**rows_in(path, type(cell)), cell: row}
            document = {"environment": first, "cells": list(rows.values())}
            write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
        yield row

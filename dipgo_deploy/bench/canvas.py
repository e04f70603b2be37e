"""Where figures are drawn and how they are saved: PNG or SVG, equal input giving equal files, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FAINT", "INK", "check_picture", "new_figure"]

INK, FAINT = "#222222", "#777777"
"""Colours of text: what is read first, and what explains it."""


def check_picture(path: Path) -> None:
    """UsageError unless ``path`` ends in .png or .svg."""
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"{path} ends in neither .png nor .svg: name a picture")


@contextmanager
def new_figure(path: Path, **options: Any) -> Iterator[Figure]:
    """A matplotlib figure that is written to ``path`` at the end; ``options`` are those of Figure.

    Raises UsageError for a path that is no picture, InputError where it cannot be written.
    """
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    look = {"svg.hashsalt": "dipgo-deploy", "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK}
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    buffer = BytesIO()
    with rc_context(look):
        figure = Figure(**options)
        yield figure
        figure.savefig(buffer, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_atomic(path, buffer.getvalue())

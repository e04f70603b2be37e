"""Where a command speaks: results go to stdout, everything else to stderr.

Colour follows the terminal and ``NO_COLOR``; a spinner turns only on a terminal outside ``CI``, elsewhere each stage is
one line. With ``--json`` the last line of stdout is one JSON document that holds ``schema_version``.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SCHEMA_VERSION", "emit", "result", "say", "working"]

SCHEMA_VERSION = "1.0"
"""Version of the documents that ``--json`` prints; a change that breaks a reader raises the first number."""

_PIPE_WIDTH = 160


def say(message: str) -> None:
    """One line for the person at the terminal, on stderr."""
    print(message, file=sys.stderr, flush=True)


def result(renderable: Any) -> None:
    """A command's result on stdout: text, a rich table or any other rich renderable."""
    _console().print(renderable, markup=False, highlight=False)


def emit(document: Mapping[str, Any]) -> None:
    """One JSON document as one line on stdout, ``schema_version`` first; a number that is not finite becomes null."""
    versioned = {"schema_version": SCHEMA_VERSION, **document}
    print(json.dumps(_finite(versioned), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """``value`` with every number that JSON lacks (the PSNR of equal images is infinite) replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def working(message: str) -> Iterator[None]:
    """Say what is being done for as long as it takes; what libraries print meanwhile goes to stderr."""
    with redirect_stdout(sys.stderr):
        if not sys.stderr.isatty() or os.environ.get("CI"):
            say(f"{message} …")
            yield
            return
        with _console(stderr=True).status(f"{message} …"):
            yield


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _PIPE_WIDTH)

"""What a command prints: results on stdout, everything else on stderr.

Colour follows the terminal and ``NO_COLOR``. Spinners and progress bars appear only on a terminal outside ``CI``.
Elsewhere every stage is one line, and long work prints a line every few seconds. In a pipe or a file, results are plain
text of a fixed width, without boxes. With ``--json`` the last line of stdout is one JSON document that holds
``schema_version``.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TypeVar

from dipgo_deploy.core.progress import Progress, Work, finish

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["SCHEMA_VERSION", "emit", "result", "say", "show_progress", "working"]

SCHEMA_VERSION = "1.0"
"""Version of the documents that ``--json`` prints. A breaking change raises the major version."""

T = TypeVar("T")

_PIPE_WIDTH = 160
"""Columns of a result in a pipe or a file, unless COLUMNS says otherwise. Every table of the program fits."""

_LINE_INTERVAL_S = 10.0


def say(message: str) -> None:
    """Print one line for the person at the terminal, on stderr."""
    print(message, file=sys.stderr, flush=True)


def result(renderable: Any) -> None:
    """Print a command's result on stdout: text, a rich table or any other rich renderable.

    A table that is wider than the terminal is printed in parts.
    """
    from dipgo_deploy.cli.table_layout import fitted

    if sys.stdout.isatty():
        console = _console()
        console.print(fitted(renderable, console), markup=False, highlight=False)
    else:
        print(_plain(renderable), flush=True)


def _plain(renderable: RenderableType) -> str:
    """The text of a renderable for programs: no colour, no box, no spaces at the end of a line.

    Lines of plain text are never broken, because they hold paths.
    """
    if isinstance(renderable, str):
        return renderable
    from rich.console import Console

    from dipgo_deploy.cli.table_layout import fitted, without_boxes

    width = int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdecimal() else _PIPE_WIDTH
    console = Console(file=io.StringIO(), width=max(width, 20), color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(fitted(without_boxes(renderable), console), markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def emit(document: Mapping[str, Any]) -> None:
    """Print one JSON document as one line on stdout. A number that is not finite becomes null."""
    versioned = {"schema_version": SCHEMA_VERSION, **document}
    print(json.dumps(_finite(versioned), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """``value`` with None for every number that JSON lacks, such as the infinite PSNR of equal images."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_interactive() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI")


@contextmanager
def working(message: str) -> Iterator[None]:
    """Show a status while the block runs. Output of libraries goes to stderr meanwhile."""
    with redirect_stdout(sys.stderr):
        if not _is_interactive():
            say(f"{message} …")
            yield
            return
        with _console(stderr=True).status(f"{message} …"):
            yield


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(file=sys.stderr if stderr else sys.stdout)


def show_progress(work: Work[T], title: str) -> T:
    """Run long work to its end and show its progress with the time that is left.

    Args:
        work: a generator of Progress.
        title: what the work does.

    Returns:
        The result of the work.
    """
    with redirect_stdout(sys.stderr), _Bar(title) if _is_interactive() else _Lines(title) as show:
        return finish(work, show)


def _scope(progress: Progress) -> tuple[str, float]:
    """What a bar counts, and the finished share: all stages where the work knows their sizes, otherwise one stage.

    Within a recipe, the stages of a bench are one scope, because ``bench / timing`` belongs to ``bench``.
    """
    if progress.overall is None:
        return progress.stage, progress.share
    outer, slash, _ = progress.stage.partition(" / ")
    return outer if slash else "", progress.overall


class _Lines:
    """Print a line at the start of a stage, then a line every few seconds.

    The time left is estimated from the first progress of a stage, or of all stages where their sizes are known.
    """

    def __init__(self, title: str) -> None:
        self._title, self._last_line = title, time.monotonic()
        self._scope: str | None = None
        self._started, self._first_share = self._last_line, 0.0

    def __enter__(self) -> Callable[[Progress], None]:
        say(f"{self._title} …")
        return self._show

    def __exit__(self, *_: object) -> None:
        return None

    def _show(self, progress: Progress) -> None:
        now, (scope, share) = time.monotonic(), _scope(progress)
        if scope != self._scope:
            self._scope, self._started, self._first_share = scope, now, share
        if now - self._last_line >= _LINE_INTERVAL_S:
            self._last_line = now
            left = _time_left(share - self._first_share, 1 - share, now - self._started)
            say(f"  {share:4.0%} {_text(progress)}, {left}")


class _Bar:
    """One bar that grows. A new stage starts the bar again, unless the sizes of all stages are known."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
        console = Console(file=sys.stderr)
        self._progress = RichProgress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._progress.add_task(title, total=1.0, line="")
        self._scope: str | None = None

    def __enter__(self) -> Callable[[Progress], None]:
        self._progress.start()
        return self._show

    def _show(self, progress: Progress) -> None:
        scope, share = _scope(progress)
        if scope != self._scope:
            self._scope = scope
            self._progress.reset(self._task)
        self._progress.update(self._task, completed=share, line=_text(progress))

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _text(progress: Progress) -> str:
    return f"{progress.stage}: {progress.text}" if progress.text else progress.stage


def _time_left(done: float, left: float, elapsed: float) -> str:
    if done <= 0 or left <= 0:
        return f"{elapsed:.0f} s"
    seconds = elapsed / done * left
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

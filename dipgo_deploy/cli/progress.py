"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import TypeVar

from dipgo_deploy.cli.output import say

__all__ = ["watched"]

T = TypeVar("T")

Reading = tuple[float, str]
"""Share done, 0..1, and a line that says where things stand."""

_EVERY_S = 10.0


def watched(steps: Iterable[T], read: Callable[[T], Reading | None], title: str) -> T:
    """Go through ``steps``, showing what ``read`` makes of each with the time that is left, and return the last.

    A step of which ``read`` makes nothing shows nothing.
    """
    last: T | None = None
    with redirect_stdout(sys.stderr):
        show = _bar(title) if sys.stderr.isatty() and not os.environ.get("CI") else _lines(title)
        with show as tell:
            for last in steps:
                if (reading := read(last)) is not None:
                    tell(*reading)
    if last is None:
        raise AssertionError(f"{title} ended without a result")
    return last


class _lines:
    """A line at the start, and one whenever some seconds have passed.

    Time is foretold from the first reading on, and anew where the share falls: another stage of the work begins.
    """

    def __init__(self, title: str) -> None:
        self._title, self._told = title, time.monotonic()
        self._begun, self._first, self._share = self._told, 0.0, math.inf

    def __enter__(self) -> Callable[[float, str], None]:
        say(f"{self._title} …")
        return self._tell

    def __exit__(self, *_: object) -> None:
        return None

    def _tell(self, share: float, line: str) -> None:
        now = time.monotonic()
        if share < self._share:
            self._begun, self._first = now, share
        self._share = share
        if now - self._told >= _EVERY_S:
            self._told = now
            say(f"  {share:4.0%} {line}, {_left(share - self._first, 1 - share, now - self._begun)}")


class _bar:
    """One bar that grows."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"))
        console = Console(file=sys.stderr)
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._progress.add_task(title, total=1.0, line="")

    def __enter__(self) -> Callable[[float, str], None]:
        self._progress.start()
        return self._tell

    def _tell(self, share: float, line: str) -> None:
        if share < self._progress.tasks[0].completed:
            self._progress.reset(self._task)
        self._progress.update(self._task, completed=share, line=line)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _left(done: float, left: float, spent: float) -> str:
    if done <= 0 or left <= 0:
        return f"{spent:.0f} s"
    seconds = spent / done * left
    return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

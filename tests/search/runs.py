"""Run a search to its end."""

from __future__ import annotations

from typing import TypeVar

from dipgo_deploy.core.progress import Progress, Work, finish

T = TypeVar("T")


def run(work: Work[T]) -> tuple[list[Progress], T]:
    """All progress of a search, and its result."""
    seen: list[Progress] = []
    result = finish(work, seen.append)
    return seen, result

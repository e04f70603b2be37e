"""Drain a search."""

from __future__ import annotations

from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.trial import Search, Trial


def run(search: Search) -> tuple[list[Trial], Candidate]:
    """All trials of a search and what it returned."""
    trials = []
    while True:
        try:
            trials.append(next(search))
        except StopIteration as end:
            return trials, end.value

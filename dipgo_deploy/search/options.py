"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dipgo_deploy.core.blocks import Kind
from dipgo_deploy.core.errors import UsageError

__all__ = ["METHODS", "TOLERANCE", "Method", "SearchOptions"]

Method = Literal["uniform", "deepcache", "fora", "random"]
"""The ways to make a schedule without training; each is described where it is built."""

METHODS: tuple[str, ...] = get_args(Method)
"""Names of all methods."""

TOLERANCE = 0.0125
"""How near a ratio must come to the asked one to count as met (DiP-GO, Algorithm 1)."""

_INTERVAL_METHODS = ("uniform", "deepcache", "fora")


@dataclass(frozen=True)
class SearchOptions:
    """Method, pruned ratio and knobs of one search.

    ``method`` is one of `METHODS`; ``ratio`` the pruned share of the full run's MACs (``papers`` convention) in [0, 1);
    ``kind`` says what a reused block stands for, its output or its output minus its input; ``seed`` is that of
    ``random``, the other methods draw nothing. ``interval``: compute in full at every ``interval``-th step, whatever
    the ratio (all methods but ``random``). ``depth``: blocks computed at each end in between (``deepcache``).

    Raises UsageError for a value that makes no sense or does not belong to the method.
    """

    method: str
    ratio: float
    kind: Kind = "output"
    seed: int = 0
    interval: int | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if self.method not in METHODS:
            raise UsageError(f"method {self.method!r} is not known: choose one of {', '.join(METHODS)}")
        if not 0 <= self.ratio < 1:
            raise UsageError(f"ratio {self.ratio} is not in [0, 1): give the share of MACs to prune, such as 0.8")
        if self.kind not in get_args(Kind):
            raise UsageError(f"kind {self.kind!r} is not known: choose one of {', '.join(get_args(Kind))}")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative: give 0 or more")
        _check_knob("interval", self.interval, self.method, _INTERVAL_METHODS)
        _check_knob("depth", self.depth, self.method, ("deepcache",))


def _check_knob(name: str, value: int | None, method: str, owners: tuple[str, ...]) -> None:
    if value is None:
        return
    if method not in owners:
        raise UsageError(f"{name} does not belong to method {method}: leave it out, or choose {' or '.join(owners)}")
    if value < 1:
        raise UsageError(f"{name} {value} is less than 1: give a positive number")

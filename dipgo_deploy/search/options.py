"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dipgo_deploy.core.blocks import Kind
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable

__all__ = ["JUDGED", "METHODS", "RULES", "TOLERANCE", "JudgedName", "Method", "SearchOptions"]

Method = Literal["uniform", "deepcache", "fora", "random"]
"""The ways to make a schedule from the block graph alone; each is described where it is built."""

JudgedName = Literal["best-random", "evolutionary", "dpcache"]
"""The ways that run the model, to judge schedules by the images they make."""

RULES: tuple[str, ...] = get_args(Method)
"""Names of the methods that need no model."""

JUDGED: tuple[str, ...] = get_args(JudgedName)
"""Names of the methods that run the model."""

METHODS = (*RULES, *JUDGED, "dipgo")
"""Names of all methods; ``dipgo`` is the gradient search."""

TOLERANCE = 0.0125
"""How near a ratio must come to the asked one to count as met (DiP-GO, Algorithm 1)."""

_INTERVAL_METHODS = ("uniform", "deepcache", "fora")


@dataclass(frozen=True)
class SearchOptions:
    """Method, pruned ratio and knobs of one search.

    ``method`` is one of `METHODS`; ``ratio`` the pruned share of the full run's MACs (``papers`` convention) in [0, 1),
    or of its time where ``cost`` is a latency table;
    ``kind`` says what a reused block stands for, its output or its output minus its input; ``seed`` is that of
    ``random`` and of the methods that run the model, the other rules draw nothing. ``interval``: compute in full at
    every ``interval``-th step, whatever the ratio (``uniform``, ``deepcache``, ``fora``). ``depth``: blocks computed at
    each end in between (``deepcache``). ``candidates``: random schedules to judge (``best-random``). ``population``:
    schedules of one generation, ``trajectories``: budget in full trajectories of one image (``evolutionary``). A knob
    left out takes the method's own default.

    Raises UsageError for a value that makes no sense or does not belong to the method.
    """

    method: str
    ratio: float
    kind: Kind = "output"
    seed: int = 0
    interval: int | None = None
    depth: int | None = None
    candidates: int | None = None
    population: int | None = None
    trajectories: int | None = None
    cost: LatencyTable | None = None

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
        _check_knob("candidates", self.candidates, self.method, ("best-random",))
        _check_knob("population", self.population, self.method, ("evolutionary",), least=4)
        _check_knob("trajectories", self.trajectories, self.method, ("evolutionary",))


def _check_knob(name: str, value: int | None, method: str, owners: tuple[str, ...], least: int = 1) -> None:
    if value is None:
        return
    if method not in owners:
        raise UsageError(f"{name} does not belong to method {method}: leave it out, or choose {' or '.join(owners)}")
    if value < least:
        raise UsageError(f"{name} {value} is less than {least}: give {least} or more")

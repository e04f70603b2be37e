"""Options of the simpler methods: one frozen dataclass per method, checked on construction.

The options of the gradient search are in search/dipgo/options.py. The table of methods is in search/options.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dipgo_deploy.core.errors import UsageError

__all__ = [
    "BestRandomOptions",
    "DeepCacheOptions",
    "DpcacheOptions",
    "EvolutionOptions",
    "ForaOptions",
    "MethodOptions",
    "RandomOptions",
    "UniformOptions",
]


@dataclass(frozen=True)
class MethodOptions:
    """Base class of the options of one method."""

    @property
    def decides_ratio(self) -> bool:
        """Whether these options fix what is computed, so that the ratio of the search is not used."""
        return False

    def check_shared(self, changed: Collection[str]) -> None:
        """Raise UsageError if an option that all methods share contradicts these options.

        Args:
            changed: names of the shared options that differ from their defaults.
        """


@dataclass(frozen=True)
class UniformOptions(MethodOptions):
    """Options of ``uniform``: whole steps are computed, the prediction is held in between.

    Attributes:
        interval: compute every ``interval``-th step, whatever the ratio.
        calls: compute exactly this many evenly spread steps, whatever the ratio.

    Raises:
        UsageError: a number below 1, or both options together.
    """

    interval: int | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        _at_least(1, interval=self.interval, calls=self.calls)
        if self.interval is not None and self.calls is not None:
            raise UsageError("interval and calls both choose the computed steps: give one of them")

    @property
    def decides_ratio(self) -> bool:
        """Whether ``interval`` or ``calls`` is given."""
        return self.interval is not None or self.calls is not None


@dataclass(frozen=True)
class DeepCacheOptions(MethodOptions):
    """Options of ``deepcache``: a shallow branch is computed between full steps.

    Attributes:
        interval: compute every ``interval``-th step in full, whatever the ratio.
        depth: blocks that are computed at each end of the model between full steps.

    Raises:
        UsageError: a number below 1.
    """

    interval: int | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        _at_least(1, interval=self.interval, depth=self.depth)

    @property
    def decides_ratio(self) -> bool:
        """Whether ``interval`` is given."""
        return self.interval is not None


@dataclass(frozen=True)
class ForaOptions(MethodOptions):
    """Options of ``fora``: only stem and tail are computed between full steps.

    Attributes:
        interval: compute every ``interval``-th step in full, whatever the ratio.

    Raises:
        UsageError: an interval below 1.
    """

    interval: int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        _at_least(1, interval=self.interval)

    @property
    def decides_ratio(self) -> bool:
        """Whether ``interval`` is given."""
        return self.interval is not None


@dataclass(frozen=True)
class RandomOptions(MethodOptions):
    """``random`` has no options of its own: seed and ratio are shared by all methods."""


@dataclass(frozen=True)
class BestRandomOptions(MethodOptions):
    """Options of ``best-random``: ``candidates`` random schedules are evaluated. UsageError for fewer than one."""

    candidates: int = 5

    def __post_init__(self) -> None:
        """Check every field."""
        _at_least(1, candidates=self.candidates)


@dataclass(frozen=True)
class EvolutionOptions(MethodOptions):
    """Options of ``evolutionary``.

    Attributes:
        population: schedules of one generation.
        trajectories: budget of the search, in full trajectories of one image.

    Raises:
        UsageError: fewer than four schedules, or a budget below 1.
    """

    population: int = 16
    trajectories: int = 300

    def __post_init__(self) -> None:
        """Check every field."""
        _at_least(4, population=self.population)
        _at_least(1, trajectories=self.trajectories)


@dataclass(frozen=True)
class DpcacheOptions(MethodOptions):
    """``dpcache`` has no options of its own: seed, ratio and images are shared by all methods."""


def _at_least(least: int, **numbers: int | None) -> None:
    """Raise UsageError for the first of the named numbers that is below ``least``."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise UsageError(f"{name} must be at least {least}, got {number}")

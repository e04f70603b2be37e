"""Which engines are in device memory: loaded when first needed, the least recently used one given up for room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dipgo_deploy.core.errors import MissingError

__all__ = ["Residency", "Traffic", "traffic"]


class Residency:
    """The engines in memory, at most ``budget`` bytes of them; None sets no limit.

    ``pinned`` bytes (slots, activations) are taken off the budget before.
    """

    def __init__(self, budget: int | None = None, pinned: int = 0) -> None:
        self._budget, self._pinned = budget, pinned
        self._held: OrderedDict[str, int] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """What is in memory, the least recently used first."""
        return tuple(self._held)

    @property
    def held_bytes(self) -> int:
        """Bytes of it, without what is pinned."""
        return sum(self._held.values())

    def use(self, name: str, size: int) -> tuple[str, ...] | None:
        """``make_room``, then ``hold``: for a load that cannot fail."""
        gone = self.make_room(name, size)
        if gone is not None:
            self.hold(name, size)
        return gone

    def hold(self, name: str, size: int) -> None:
        """Note that ``name`` was loaded, after ``make_room``."""
        self._held[name] = size

    def pin(self, pinned: int) -> tuple[str, ...]:
        """Take ``pinned`` bytes off the budget from now on; what has to go for it, never the most recently used.

        Raises MissingError where that one does not fit beside them; then nothing is in memory.
        """
        self._pinned, gone = pinned, []
        while self._budget is not None and self._held and self.held_bytes > self._budget - pinned:
            if len(self._held) == 1:
                raise self._too_large(*self._held.popitem())
            gone.append(self._held.popitem(last=False)[0])
        return tuple(gone)

    def make_room(self, name: str, size: int) -> tuple[str, ...] | None:
        """What has to go before ``name`` is loaded; None where it is in, and now the most recently used.

        Raises MissingError where it does not fit even alone.
        """
        if name in self._held:
            self._held.move_to_end(name)
            return None
        gone = []
        if self._budget is not None:
            room = self._budget - self._pinned
            if size > room:
                raise self._too_large(name, size)
            while self.held_bytes + size > room:
                gone.append(self._held.popitem(last=False)[0])
        return tuple(gone)

    def _too_large(self, name: str, size: int) -> MissingError:
        return MissingError(
            f"{name} needs {_mib(size)} beside {_mib(self._pinned)} of slots and activations, "
            f"{_mib(self._budget or 0)} of GPU memory are given: give more, or export with layout segments"
        )


@dataclass(frozen=True)
class Traffic:
    """What one more run of a program loads, engines and bytes, once it has run before."""

    loads: int
    bytes: int


def traffic(order: Iterable[str], sizes: Mapping[str, int], budget: int | None, pinned: int) -> Traffic:
    """Engine loads of a run that uses engines in ``order``, after a first such run.

    Raises MissingError where an engine does not fit.
    """
    residency, order = Residency(budget, pinned), list(order)
    for name in order:
        residency.use(name, sizes[name])
    loaded = [sizes[name] for name in order if residency.use(name, sizes[name]) is not None]
    return Traffic(len(loaded), sum(loaded))


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"

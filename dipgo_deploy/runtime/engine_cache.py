"""EngineCache: which engines are in GPU memory.

An engine is loaded when it is first needed. The least recently used engine is evicted when memory runs out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dipgo_deploy.core.errors import MissingError
from dipgo_deploy.core.tensors import MIB

__all__ = ["EngineCache", "EngineLoads", "engine_loads"]


class EngineCache:
    """Names and sizes of the engines in memory.

    Args:
        limit: bytes of engines and pinned memory together. None sets no limit.
        pinned: bytes that slots and activations take.
    """

    def __init__(self, limit: int | None = None, pinned: int = 0) -> None:
        self._limit, self._pinned = limit, pinned
        self._held: OrderedDict[str, int] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """The engines in memory, the least recently used first."""
        return tuple(self._held)

    @property
    def held_bytes(self) -> int:
        """Bytes of the engines in memory, without pinned memory."""
        return sum(self._held.values())

    def use(self, name: str, size: int) -> tuple[str, ...] | None:
        """``make_room`` and then ``hold``, for a load that cannot fail."""
        evicted = self.make_room(name, size)
        if evicted is not None:
            self.hold(name, size)
        return evicted

    def hold(self, name: str, size: int) -> None:
        """Note that engine ``name`` of ``size`` bytes was loaded. ``make_room`` comes first."""
        self._held[name] = size

    def pin(self, pinned: int) -> tuple[str, ...]:
        """Change the bytes that are pinned.

        Returns the engines to evict. The most recently used engine always stays. Raises MissingError if that engine
        does not fit next to the pinned bytes. The cache is empty then.
        """
        self._pinned, evicted = pinned, []
        while self._limit is not None and self._held and self.held_bytes > self._limit - pinned:
            if len(self._held) == 1:
                raise self._too_large(*self._held.popitem())
            evicted.append(self._held.popitem(last=False)[0])
        return tuple(evicted)

    def make_room(self, name: str, size: int) -> tuple[str, ...] | None:
        """Make room for an engine.

        Args:
            name: the engine that is about to be used.
            size: its bytes.

        Returns:
            The engines to evict first. None where the engine is in memory already.

        Raises:
            MissingError: the engine does not fit even alone.
        """
        if name in self._held:
            self._held.move_to_end(name)
            return None
        evicted = []
        if self._limit is not None:
            room = self._limit - self._pinned
            if size > room:
                raise self._too_large(name, size)
            while self.held_bytes + size > room:
                evicted.append(self._held.popitem(last=False)[0])
        return tuple(evicted)

    def _too_large(self, name: str, size: int) -> MissingError:
        return MissingError(
            f"not enough GPU memory for engine {name}: it needs {_mib(size)} next to {_mib(self._pinned)} of slots and "
            f"activations, gpu_memory is {_mib(self._limit or 0)}: give more, or export with layout segments"
        )


@dataclass(frozen=True)
class EngineLoads:
    """The engines that a run loads again although the program has run before: their number and their bytes."""

    loads: int
    bytes: int


def engine_loads(order: Iterable[str], sizes: Mapping[str, int], limit: int | None, pinned: int) -> EngineLoads:
    """Engine loads of a run, after a first run of the same program.

    Args:
        order: engines in the order in which a run uses them.
        sizes: bytes of each engine.
        limit: bytes of GPU memory, None for no limit.
        pinned: bytes of slots and activations.

    Returns:
        Number and bytes of the loads.

    Raises:
        MissingError: an engine does not fit.
    """
    cache, order = EngineCache(limit, pinned), list(order)
    for name in order:
        cache.use(name, sizes[name])
    loaded = [sizes[name] for name in order if cache.use(name, sizes[name]) is not None]
    return EngineLoads(len(loaded), sum(loaded))


def _mib(count: int) -> str:
    return f"{count / MIB:.1f} MiB"

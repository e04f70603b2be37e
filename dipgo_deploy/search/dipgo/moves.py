"""Moves between masks of one ratio: some rows compute more where the gradient promises most, other rows pay.

A mask is (steps, blocks), True where computed. A *change* gives one step another row: one entry toggled, the row of
another step, a shallow row (some blocks at both ends), everything, or nothing. To first order its gain is the sum of
its entries' benefits. A closed step gains the benefit of its prediction, less where the new row computes less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.search.candidate import mask_from_sets
from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.dipgo.threshold import sets_of

__all__ = ["Change", "Moves"]

_LAST = -1
"""Column of the prediction."""


@dataclass(frozen=True)
class Change:
    """Another row for a step: its gain to first order, and its cost as a share of one full step."""

    step: int
    row: tuple[bool, ...]
    gain: float
    cost: float

    @property
    def rate(self) -> float:
        """Gain over cost: high is good for a change that costs, low for a change that saves."""
        return self.gain / self.cost


class Moves:
    """The neighbourhood of masks of one block graph, none more expensive than ``ratio`` allows.

    Args:
        graph: the blocks.
        cost: cost of a step.
        ratio: pruned share of compute that every neighbour keeps.
        ups: number of changes to pay for, best gain per cost or best gain first.
        payers: number of ways to pay for each: many small changes, the best single change, the next best, and so on.
    """

    def __init__(self, graph: BlockGraph, cost: GateCost, ratio: float, ups: int = 8, payers: int = 3) -> None:
        self._graph, self._cost, self._ups, self._payers = graph, cost, ups, payers
        self._ratio = ratio
        self._shallow = [self._ends(depth) for depth in range(1, (len(graph.blocks) - 1) // 2 + 1)]

    def sets(self, mask: np.ndarray) -> list[frozenset[str]]:
        """The compute sets of ``mask``, without blocks that their own step's prediction does not need."""
        return list(sets_of(mask, self._graph, self._cost.pricer))

    def clean(self, mask: np.ndarray) -> np.ndarray:
        """``mask`` without dead entries."""
        return mask_from_sets(self.sets(mask), self._graph.block_names)

    def opened(self, mask: np.ndarray) -> np.ndarray:
        """``mask`` with all blocks of every closed step, except the prediction: the gradient is taken there."""
        opened = mask.copy()
        opened[~mask[:, _LAST], :_LAST] = True
        return opened

    def around(self, mask: np.ndarray, benefit: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield neighbours of a mask: two exchanges for every shift of a step, as long as there are any.

        Args:
            mask: (steps, blocks).
            benefit: gain of every entry by being computed, (steps, blocks).
            rng: draws the order of shifts.

        Yields:
            Masks without dead entries that prune enough.
        """
        exchanges, shifts = self._exchanges(mask, benefit), self._shifts(mask, rng)
        while True:
            trials = [next(exchanges, None), next(exchanges, None), next(shifts, None)]
            if all(trial is None for trial in trials):
                return
            yield from (self.clean(trial) for trial in trials if trial is not None)

    def changes(self, mask: np.ndarray, benefit: np.ndarray) -> list[Change]:
        """All changes that cost or save anything, of every step except the first."""
        library = {tuple(row) for row in mask.tolist()} | set(self._shallow)
        return [change for step in range(1, len(mask)) for change in self._of_step(step, mask[step], benefit, library)]

    def _of_step(
        self, step: int, row: np.ndarray, benefit: np.ndarray, library: set[tuple[bool, ...]]
    ) -> Iterator[Change]:
        old, blocks = tuple(row.tolist()), len(row)
        toggled = [tuple(on != (k == at) for k, on in enumerate(old)) for at in range(blocks)] if row[_LAST] else []
        share = self._share(old)
        for new in {self._live(other) for other in (*toggled, *library, (False,) * blocks)} - {old}:
            cost = self._share(new) - share
            if abs(cost) > 1e-6:
                yield Change(step, new, self._gain(old, new, benefit[step]), cost)

    def _gain(self, old: tuple[bool, ...], new: tuple[bool, ...], benefit: np.ndarray) -> float:
        if not old[_LAST]:
            return float(benefit[_LAST]) * self._share(new) ** 0.5
        if not new[_LAST]:
            return -float(benefit[_LAST])
        return float(benefit @ (np.array(new, dtype=float) - np.array(old, dtype=float)))

    def _exchanges(self, mask: np.ndarray, benefit: np.ndarray) -> Iterator[np.ndarray]:
        changes = self.changes(mask, benefit)
        spend = [change for change in changes if change.cost > 0]
        by_rate, by_gain = sorted(spend, key=lambda c: -c.rate), sorted(spend, key=lambda c: -c.gain)
        ups = list(dict.fromkeys(up for pair in zip(by_rate, by_gain, strict=True) for up in pair))[: self._ups]
        downs = sorted((change for change in changes if change.cost < 0), key=lambda c: c.rate)
        for payer in range(self._payers):
            for up in ups:
                trial = self._paid_by_one(mask, up, downs, payer - 1) if payer else self._paid(mask, up, downs)
                if trial is not None:
                    yield trial

    def _paid(self, mask: np.ndarray, up: Change, downs: list[Change]) -> np.ndarray | None:
        """Pay with the changes that lose least for their saving, as many as needed."""
        trial, used = mask.copy(), {up.step}
        trial[up.step] = up.row
        for down in downs:
            if self.fits(trial):
                return trial
            if down.step not in used:
                used.add(down.step)
                trial[down.step] = down.row
        return trial if self.fits(trial) else None

    def _paid_by_one(self, mask: np.ndarray, up: Change, downs: list[Change], place: int) -> np.ndarray | None:
        """Pay with a single change that saves enough: the one that loses least, or the next ``place`` after it."""
        kept = self._cost.kept(self.sets(mask)) * len(mask)
        need = kept + up.cost - (1 - self._ratio) * len(mask)
        able = sorted((d for d in downs if -d.cost >= need and d.step != up.step), key=lambda d: -d.gain)
        if need <= 0 or place >= len(able):
            return None
        trial = mask.copy()
        trial[up.step], trial[able[place].step] = up.row, able[place].row
        return trial if self.fits(trial) else None

    def fits(self, mask: np.ndarray) -> bool:
        """Whether ``mask`` prunes as much as requested."""
        return self._cost.kept(self.sets(mask)) <= 1 - self._ratio + 1e-9

    def _shifts(self, mask: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
        pairs = [
            (step, to)
            for step in np.flatnonzero(mask[1:, _LAST]) + 1
            for to in (step - 1, step + 1)
            if 0 < to < len(mask) and not mask[to, _LAST]
        ]
        for step, to in rng.permutation(pairs).tolist() if pairs else []:
            trial = mask.copy()
            trial[to], trial[step] = mask[step], False
            if self.fits(trial):
                yield trial

    def _ends(self, depth: int) -> tuple[bool, ...]:
        blocks = len(self._graph.blocks) - 1
        return (*(k < depth or k >= blocks - depth for k in range(blocks)), True)

    def _set(self, row: tuple[bool, ...]) -> frozenset[str]:
        return frozenset(name for name, on in zip(self._graph.block_names, row, strict=True) if on)

    def _live(self, row: tuple[bool, ...]) -> tuple[bool, ...]:
        live = self._cost.pricer.live(self._set(row))
        return tuple(name in live for name in self._graph.block_names)

    def _share(self, row: tuple[bool, ...]) -> float:
        return self._cost.step_share(self._set(row))

"""Schedules as genomes: a bit per step and block, and what an evolution does with them.

1. A genome is a boolean array (T, N), columns in the order of the graph's blocks, the prediction last. Row 0 is all on.
2. What it means is canonical: of every step only the blocks that its own prediction needs (`Pricer.live`), none where
   the prediction bit is off. Genomes that differ in dead bits are one schedule, and a step's cost is its own matter.
3. Dead bits are kept all the same. A step that is switched off remembers its blocks, so one flip of the prediction bit
   moves a whole step in or out; without that, N flips at once would be needed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.search.candidate import ComputeSets
from dipgo_deploy.search.pricing import Pricer

__all__ = ["Genome", "Genomes"]

Genome = NDArray[np.bool_]
"""Which entries are computed (steps, blocks)."""

_FLIPS = 2000
"""Entries tried before a ratio counts as out of reach."""

_MOST_CUTS = 4
_FLIPPED_BITS = 2.0
"""Entries that a mutation flips, on average."""


class Genomes:
    """Operators on genomes of ``steps`` rows for one graph; every draw comes from ``rng``."""

    def __init__(self, graph: BlockGraph, pricer: Pricer, steps: int, rng: np.random.Generator) -> None:
        self._names, self._pricer, self._steps, self._rng = graph.block_names, pricer, steps, rng

    def genome(self, computed: ComputeSets) -> Genome:
        """The genome of a schedule. A step that computes no prediction would compute everything if switched on."""
        rows = [[name in step or PREDICTION not in step for name in self._names[:-1]] for step in computed]
        return np.array([[*row, PREDICTION in step] for row, step in zip(rows, computed, strict=True)])

    def computed(self, genome: Genome) -> tuple[frozenset[str], ...]:
        """The canonical compute sets of a genome."""
        return (frozenset(self._names), *(self._live(row) for row in genome[1:]))

    def ratio(self, genome: Genome) -> float:
        """Pruned share of MACs, as the sum over steps."""
        return 1.0 - (1.0 + sum(self._kept(row) for row in genome[1:])) / self._steps

    def child(self, first: Genome, second: Genome) -> Genome:
        """A mutated crossover: up to 4 cuts through the rows laid end to end, pieces from both parents in turn."""
        cuts = self._rng.integers(0, first.size + 1, size=self._rng.integers(1, _MOST_CUTS + 1))
        from_second = (np.searchsorted(np.sort(cuts), np.arange(first.size), side="right") % 2).astype(bool)
        child = np.where(from_second.reshape(first.shape), second, first)
        return self._mutated(child)

    def fitted(self, genome: Genome, ratio: float, tolerance: float) -> Genome:
        """``genome`` with random entries flipped until it is within ``tolerance`` of ``ratio``, or no flip helps.

        Every other try is at a prediction bit, so that whole steps are switched as often as single blocks.
        """
        genome, gap = genome.copy(), self.ratio(genome) - ratio
        for _ in range(_FLIPS if self._steps > 1 else 0):
            if abs(gap) <= tolerance:
                break
            row = genome[self._rng.integers(1, self._steps)]
            column = -1 if self._rng.random() < 0.5 else self._rng.integers(len(self._names))
            before = self._kept(row)
            row[column] = not row[column]
            moved = gap + (before - self._kept(row)) / self._steps
            if abs(moved) < abs(gap):
                gap = moved
            else:
                row[column] = not row[column]
        return genome

    def _mutated(self, genome: Genome) -> Genome:
        """Bits flip, and every other time a computed step trades places with a neighbour (ours)."""
        genome = genome ^ (self._rng.random(genome.shape) < _FLIPPED_BITS / genome.size)
        genome[0] = True
        movable = np.flatnonzero(genome[1:, -1]) + 1
        if len(movable) and self._steps > 2 and self._rng.random() < 0.5:
            step = int(self._rng.choice(movable))
            other = min(max(step + (1 if self._rng.random() < 0.5 else -1), 1), self._steps - 1)
            genome[[step, other]] = genome[[other, step]]
        return genome

    def _live(self, row: Genome) -> frozenset[str]:
        return self._pricer.live(frozenset(name for name, on in zip(self._names, row, strict=True) if on))

    def _kept(self, row: Genome) -> float:
        return self._pricer.kept_share(self._live(row)) if row[-1] else 0.0

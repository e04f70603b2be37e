"""Schedules as genomes, a bit per step and block, and which of them survive a generation.

1. A genome is a boolean array (T, N), columns in the order of the graph's blocks, the prediction last. Row 0 is all on.
2. Its schedule is canonical: of every step only the blocks that its own prediction needs (`Pricer.live`), none where
   the prediction bit is off. Genomes that differ in dead bits are one schedule. The cost of a step depends on the step
   alone.
3. Dead bits are kept. A step that is switched off remembers its blocks, so one flip of the prediction bit moves a whole
   step in or out. Otherwise N flips at once would be needed.
4. Survival is that of NSGA-II (Deb et al. 2002): non-dominated sorting, crowding distance, constrained domination.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.search.candidate import ComputeSets
from dipgo_deploy.search.cost import Pricer

__all__ = ["Genome", "Genomes", "crowding_distance", "non_dominated_fronts", "survivors"]

Floats = NDArray[np.float64]

Genome = NDArray[np.bool_]
"""Which entries are computed (steps, blocks)."""

_FLIPS = 2000
"""Number of entries to try before a ratio counts as unreachable."""

_MOST_CUTS = 4
_FLIPPED_BITS = 2.0
"""Entries that a mutation flips, on average."""


class Genomes:
    """Operators on genomes of ``steps`` rows for one graph. Every draw comes from ``rng``."""

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
        """Pruned share of the full run's cost, as the sum over steps."""
        return 1.0 - (1.0 + sum(self._kept(row) for row in genome[1:])) / self._steps

    def child(self, first: Genome, second: Genome) -> Genome:
        """Cross two genomes at up to 4 cuts through the rows laid end to end, and mutate the child."""
        cuts = self._rng.integers(0, first.size + 1, size=self._rng.integers(1, _MOST_CUTS + 1))
        from_second = (np.searchsorted(np.sort(cuts), np.arange(first.size), side="right") % 2).astype(bool)
        child = np.where(from_second.reshape(first.shape), second, first)
        return self._mutated(child)

    def fitted(self, genome: Genome, ratio: float, tolerance: float) -> Genome:
        """Flip random entries until the genome is near a ratio, or no flip helps.

        Every other flip is of a prediction bit, so that whole steps are switched as often as single blocks.

        Args:
            genome: the genome to start from. It is not changed.
            ratio: pruned share to reach.
            tolerance: distance from ``ratio`` that is near enough.

        Returns:
            The fitted genome.
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
        """Flip some bits, and every other time swap a computed step with a neighbour (not in ECAD)."""
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


def non_dominated_fronts(points: Floats) -> list[NDArray[np.intp]]:
    """Indices of ``points`` (n, objectives), all to be minimised, front by front, ascending inside each front.

    A point is in the first front if no other point is as good in all objectives and better in one. It is in the second
    front if only points of the first front are, and so on.
    """
    no_worse = np.all(points[:, None] <= points[None], axis=2)
    dominates: NDArray[np.bool_] = np.logical_and(no_worse, np.any(points[:, None] < points[None], axis=2))
    left, fronts = np.ones(len(points), dtype=bool), []
    while left.any():
        front = left & ~dominates[left].any(axis=0)
        fronts.append(np.flatnonzero(front))
        left &= ~front
    return fronts


def crowding_distance(points: Floats) -> Floats:
    """How far apart each point's neighbours in one front are, summed over objectives in units of the front's range.

    The ends of a front count as infinitely far apart, so that the front keeps its extent.
    """
    distance = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if spread > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def survivors(points: Floats, violations: Floats, count: int) -> list[int]:
    """Choose the fittest points.

    Points without violation come first: by front, and within a front by falling crowding distance. The others follow,
    the smallest violation first.

    Args:
        points: (n, objectives), all to be minimised.
        violations: (n,) by how much each point violates the constraint. 0 or less is allowed.
        count: how many points survive.

    Returns:
        Indices of the survivors, the fittest first.
    """
    allowed = np.flatnonzero(violations <= 0)
    order: list[int] = []
    for front in non_dominated_fronts(points[allowed]):
        members = allowed[front]
        order += members[np.argsort(-crowding_distance(points[members]), kind="stable")].tolist()
    others = np.flatnonzero(violations > 0)
    order += others[np.argsort(violations[others], kind="stable")].tolist()
    return order[:count]

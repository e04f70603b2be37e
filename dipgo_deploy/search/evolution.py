"""An evolution of schedules in the manner of ECAD (arXiv 2506.15682): NSGA-II over bits, quality against MACs.

1. Genomes are bits by step and block (search/genome.py). The first population holds the schedules of the rules and, for
   the rest, random ones.
2. Two objectives are minimised: minus the score, and the kept share of MACs.
3. ECAD wants the whole front and picks from it. Here one ratio is asked for, and images are dear, so the front is
   sought around it: a child is fitted by random flips into a window of ratios before it is judged, and whoever lies
   outside the window is less fit than all inside (Deb's constrained domination). The window narrows from 4 TOLERANCE
   to TOLERANCE as the budget is spent: first variety, then schedules that may be returned.
4. A generation has as many children as parents; parents are chosen by binary tournament on front and crowding. It ends
   once the budget is spent, or where 20 generations in a row met no schedule that was new.
5. Returned is the best of all schedules judged within TOLERANCE of the ratio; where there is none, the nearest one,
   fitted by random flips.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.calibration import Judge
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.genome import Genome, Genomes
from dipgo_deploy.search.options import TOLERANCE, SearchOptions
from dipgo_deploy.search.pareto import survivors
from dipgo_deploy.search.random_schedule import random_search
from dipgo_deploy.search.rules import deepcache, fora, uniform
from dipgo_deploy.search.trial import Search, Trial

__all__ = ["evolutionary"]

_POPULATION = 16
_TRAJECTORIES = 300
_WIDEST = 4 * TOLERANCE
_STALE_GENERATIONS = 20


def evolutionary(judge: Judge, options: SearchOptions) -> Search:
    """The best schedule of ``population`` (16) evolved until ``judge.spent`` passes ``trajectories`` (300).

    Raises UsageError where the judge has spent the budget already.
    """
    budget = options.trajectories or _TRAJECTORIES
    if judge.spent >= budget:
        raise UsageError(f"trajectories {budget} are spent: {judge.spent:.0f} went before, give more")
    return (yield from _Evolution(judge, options, budget).run())


@dataclass(frozen=True)
class _Individual:
    genome: Genome
    computed: tuple[frozenset[str], ...]
    score: float
    ratio: float


class _Evolution:
    """One population and the best schedule it ever met."""

    def __init__(self, judge: Judge, options: SearchOptions, budget: int) -> None:
        self.judge, self.options, self.budget = judge, options, budget
        self.size = options.population or _POPULATION
        self.steps = judge.calibration.contract.sampler.calls
        self.rng = np.random.default_rng(options.seed)
        self.genomes = Genomes(judge.graph, judge.pricer, self.steps, self.rng)
        self.best: _Individual | None = None
        self.judged = 0

    def run(self) -> Search:
        """The numbered steps of the module's docstring."""
        population = yield from self._judged(self._first())
        generation, stale = 0, 0
        while self._has_budget and stale < _STALE_GENERATIONS:
            before, generation = self.judge.spent, generation + 1
            population = self._fittest(population + (yield from self._judged(self._children(population))))
            stale = stale + 1 if self.judge.spent == before else 0
        found = self.best or self._repaired(population[0])
        knobs = {"population": self.size, "trajectories": self.budget, "generations": generation, "judged": self.judged}
        return Candidate(found.computed, found.ratio, {name: str(value) for name, value in knobs.items()})

    def _judged(self, genomes: Iterator[Genome]) -> Generator[Trial, None, list[_Individual]]:
        found: list[_Individual] = []
        for genome in genomes:
            found.append(self._individual(genome))
            best = self.best.score if self.best else None
            yield Trial("evolution", self.judge.spent, self.budget, best, self.judge.spent)
            if not self._has_budget:
                break
        return self._fittest(found)

    def _individual(self, genome: Genome) -> _Individual:
        computed = self.genomes.computed(genome)
        found = _Individual(genome, computed, self.judge.score(computed), self.judge.pricer.ratio(computed))
        self.judged += 1
        if abs(found.ratio - self.options.ratio) <= TOLERANCE and (self.best is None or found.score > self.best.score):
            self.best = found
        return found

    def _first(self) -> Iterator[Genome]:
        """The rules' schedules, then random ones, as many as the population holds."""
        ratio, kind, graph = self.options.ratio, self.options.kind, self.judge.graph
        rules = [uniform, fora, *([deepcache] if len(graph.blocks) > 3 else [])]
        asked = SearchOptions("uniform", ratio, kind, cost=self.options.cost)
        for rule in rules:
            yield self._fitted(self.genomes.genome(rule(graph, self.steps, asked).computed))
        for index in range(self.size - len(rules)):
            draw = replace(asked, method="random", seed=self.options.seed * self.size + index)
            yield self._fitted(self.genomes.genome(random_search(graph, self.steps, draw).computed))

    def _children(self, population: list[_Individual]) -> Iterator[Genome]:
        for _ in range(self.size):
            first, second = (population[int(self.rng.integers(len(population), size=2).min())] for _ in range(2))
            yield self._fitted(self.genomes.child(first.genome, second.genome))

    def _fittest(self, individuals: list[_Individual]) -> list[_Individual]:
        individuals = list({one.computed: one for one in individuals}.values())
        points = np.array([(-one.score, 1 - one.ratio) for one in individuals])
        gaps = np.array([abs(one.ratio - self.options.ratio) for one in individuals])
        return [individuals[i] for i in survivors(points, gaps - self._window, self.size)]

    def _fitted(self, genome: Genome) -> Genome:
        return self.genomes.fitted(genome, self.options.ratio, self._window)

    def _repaired(self, nearest: _Individual) -> _Individual:
        return self._individual(self.genomes.fitted(nearest.genome, self.options.ratio, TOLERANCE))

    @property
    def _window(self) -> float:
        left = max(0.0, 1 - self.judge.spent / self.budget)
        return TOLERANCE + (_WIDEST - TOLERANCE) * left

    @property
    def _has_budget(self) -> bool:
        return self.judge.spent < self.budget

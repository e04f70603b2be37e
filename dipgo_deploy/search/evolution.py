"""An ECAD-style evolution of schedules (arXiv 2506.15682): NSGA-II over bits, quality against MACs.

1. Genomes are bits by step and block (search/genome.py). The first population holds the schedules of the rules, and
   random schedules for the rest.
2. Two objectives are minimised: minus the score, and the kept share of MACs.
3. ECAD seeks the whole front and picks from it. Here one ratio is requested, and images are expensive. So the front is
   sought around that ratio: a child is fitted by random flips into a window of ratios before its evaluation. Schedules
   outside the window are less fit than all inside (Deb's constrained domination). The window narrows from 4 TOLERANCE
   to TOLERANCE as the budget is used: first variety, then schedules that may be returned.
4. A generation has as many children as parents. Parents are chosen by binary tournament on front and crowding. The
   search ends with the budget, or after 20 generations in a row without a new schedule.
5. The result is the best schedule evaluated within TOLERANCE of the ratio. If there is none, it is the nearest
   schedule, fitted by random flips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.evaluator import Evaluator
from dipgo_deploy.search.genome import Genome, Genomes, survivors
from dipgo_deploy.search.method_options import EvolutionOptions
from dipgo_deploy.search.options import TOLERANCE, SearchOptions
from dipgo_deploy.search.random_schedules import random_search
from dipgo_deploy.search.rules import deepcache, fora, uniform

__all__ = ["evolutionary"]

_WIDEST = 4 * TOLERANCE
_STALE_GENERATIONS = 20


def evolutionary(evaluator: Evaluator, options: SearchOptions) -> Work[Candidate]:
    """Evolve ``population`` schedules until the evaluator's cost passes ``trajectories``.

    Args:
        evaluator: gives the score of a schedule, and counts the cost.
        options: ratio, seed, and EvolutionOptions.

    Returns:
        A generator of Progress whose result is the candidate.

    Raises:
        UsageError: the evaluator has used the budget already.
    """
    settings = options.settings_as(EvolutionOptions)
    if evaluator.search_cost >= settings.trajectories:
        raise UsageError(
            f"trajectories {settings.trajectories} are used up: {evaluator.search_cost:.0f} were needed for full runs, "
            "give more"
        )
    return (yield from _Evolution(evaluator, options, settings).run())


@dataclass(frozen=True)
class _Individual:
    genome: Genome
    computed: tuple[frozenset[str], ...]
    score: float
    ratio: float


class _Evolution:
    """One population, and the best schedule that was ever evaluated."""

    def __init__(self, evaluator: Evaluator, options: SearchOptions, settings: EvolutionOptions) -> None:
        self.evaluator, self.options = evaluator, options
        self.size, self.budget = settings.population, settings.trajectories
        self.steps = evaluator.calibration.contract.sampler.calls
        self.rng = np.random.default_rng(options.seed)
        self.genomes = Genomes(evaluator.graph, evaluator.pricer, self.steps, self.rng)
        self.best: _Individual | None = None
        self.evaluated = 0

    def run(self) -> Work[Candidate]:
        """Run the numbered steps of the module's docstring."""
        population = yield from self._evaluate(self._first())
        generation, stale = 0, 0
        while self._has_budget and stale < _STALE_GENERATIONS:
            before, generation = self.evaluator.search_cost, generation + 1
            population = self._fittest(population + (yield from self._evaluate(self._children(population))))
            stale = stale + 1 if self.evaluator.search_cost == before else 0
        best = self.best or self._repaired(population[0])
        knobs = {
            "population": self.size,
            "trajectories": self.budget,
            "generations": generation,
            "evaluated": self.evaluated,
        }
        return Candidate(best.computed, best.ratio, {name: str(value) for name, value in knobs.items()})

    def _evaluate(self, genomes: Iterator[Genome]) -> Work[list[_Individual]]:
        individuals: list[_Individual] = []
        for genome in genomes:
            individuals.append(self._individual(genome))
            text = f"best {self.best.score:.2f} dB" if self.best else ""
            yield Progress("evolution", self.evaluator.search_cost, self.budget, text)
            if not self._has_budget:
                break
        return self._fittest(individuals)

    def _individual(self, genome: Genome) -> _Individual:
        computed = self.genomes.computed(genome)
        score, ratio = self.evaluator.score(computed), self.evaluator.pricer.ratio(computed)
        individual = _Individual(genome, computed, score, ratio)
        self.evaluated += 1
        if abs(ratio - self.options.ratio) <= TOLERANCE and (self.best is None or score > self.best.score):
            self.best = individual
        return individual

    def _first(self) -> Iterator[Genome]:
        """Schedules of the rules, then random schedules, as many as the population holds."""
        graph = self.evaluator.graph
        rules = {"uniform": uniform, "fora": fora, **({"deepcache": deepcache} if len(graph.blocks) > 3 else {})}
        blank = replace(self.options, classes=(), prompts=(), settings=None, method="random")
        for name, rule in rules.items():
            candidate = rule(graph, self.steps, replace(blank, method=name, settings=None))
            yield self._fitted(self.genomes.genome(candidate.computed))
        for index in range(self.size - len(rules)):
            draw = replace(blank, seed=self.options.seed * self.size + index)
            yield self._fitted(self.genomes.genome(random_search(graph, self.steps, draw).computed))

    def _children(self, population: list[_Individual]) -> Iterator[Genome]:
        for _ in range(self.size):
            first, second = (population[int(self.rng.integers(len(population), size=2).min())] for _ in range(2))
            yield self._fitted(self.genomes.child(first.genome, second.genome))

    def _fittest(self, individuals: list[_Individual]) -> list[_Individual]:
        individuals = list({individual.computed: individual for individual in individuals}.values())
        points = np.array([(-individual.score, 1 - individual.ratio) for individual in individuals])
        gaps = np.array([abs(individual.ratio - self.options.ratio) for individual in individuals])
        return [individuals[i] for i in survivors(points, gaps - self._window, self.size)]

    def _fitted(self, genome: Genome) -> Genome:
        return self.genomes.fitted(genome, self.options.ratio, self._window)

    def _repaired(self, nearest: _Individual) -> _Individual:
        return self._individual(self.genomes.fitted(nearest.genome, self.options.ratio, TOLERANCE))

    @property
    def _window(self) -> float:
        left = max(0.0, 1 - self.evaluator.search_cost / self.budget)
        return TOLERANCE + (_WIDEST - TOLERANCE) * left

    @property
    def _has_budget(self) -> bool:
        return self.evaluator.search_cost < self.budget

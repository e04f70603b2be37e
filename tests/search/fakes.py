"""A evaluator without a model: any score of compute sets, paid for and counted as the true one is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.search.candidate import ComputeSets
from dipgo_deploy.search.cost import Pricer
from tests.search.graphs import contract_of

Score = Callable[[ComputeSets], float]


class FakeEvaluator:
    """Scores by a formula; every new schedule costs its kept share, as one image would."""

    def __init__(self, graph: BlockGraph, steps: int, score: Score, kind: Kind = "output") -> None:
        self.graph, self.kind, self.pricer = graph, kind, Pricer(graph, kind)
        self.calibration = SimpleNamespace(contract=contract_of(graph, steps), count=1)
        self.search_cost, self._score, self.known = 1.0, score, {}

    def score(self, computed: ComputeSets) -> float:
        key = tuple(computed)
        if key not in self.known:
            self.known[key] = self._score(key)
            self.search_cost += 1 - self.pricer.ratio(key)
        return self.known[key]

    def psnr_db(self, computed: ComputeSets) -> np.ndarray:
        return np.array([self.score(computed)])

    def settle(self) -> None:
        """Nothing is run, so nothing is kept."""


def hidden_optimum(graph: BlockGraph, steps: int, calls: int, seed: int) -> tuple[ComputeSets, Score]:
    """Whole steps at secret places, and a score that is 0 there and else minus how far held outputs are from them."""
    rng = np.random.default_rng(seed)
    secret = {0, *(rng.choice(np.arange(1, steps), size=calls - 1, replace=False).tolist())}
    everything = frozenset(graph.block_names)
    optimum = tuple(everything if step in secret else frozenset() for step in range(steps))

    def score(computed: ComputeSets) -> float:
        pairs = zip(computed, optimum, strict=True)
        off = sum(len(step ^ best) if best else PREDICTION in step for step, best in pairs)
        return -float(off)

    return optimum, score

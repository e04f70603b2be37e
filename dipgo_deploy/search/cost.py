"""What gates cost: MACs or measured milliseconds, with the blocks that die when a block is reused.

The share of a step is that of the blocks its own prediction needs (`Pricer.live`). Four ways to lay it on gates:

* ``cascade``: DiP-GO's constant γ_k, the share of block k and of all that dies with it in an otherwise full step.
* ``marginal``: what block k adds to or takes from the step as its other gates stand now: the exact difference.
* ``own``: the share of block k alone, and ``equal``: 1 for every gate; both for comparison.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, Literal, get_args

import numpy as np
import torch

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.search.candidate import ComputeSets, sets_from_mask
from dipgo_deploy.search.pricing import Pricer
from dipgo_deploy.supernet.surgery import gated

__all__ = ["Attribution", "GateCost", "block_milliseconds"]

Attribution = Literal["cascade", "marginal", "own", "equal"]
"""How the cost of a step is laid on its gates."""


class GateCost:
    """Cost of gates as shares of a full step.

    Args:
        pricer: of the model and kind of reuse.
        graph: the blocks; columns of the gates.
        attribution: see Attribution.
        milliseconds: of every block in a full step, and of the whole step under the key "" ; MACs if not given.

    Raises UsageError for an unknown attribution.
    """

    def __init__(
        self,
        pricer: Pricer,
        graph: BlockGraph,
        attribution: Attribution = "cascade",
        milliseconds: dict[str, float] | None = None,
    ) -> None:
        if attribution not in get_args(Attribution):
            raise UsageError(f"cost {attribution!r} is unknown: choose {', '.join(get_args(Attribution))}")
        self.pricer, self._graph, self._ms, self.attribution = pricer, graph, milliseconds, attribution
        self._marginal: dict[frozenset[str], np.ndarray] = {}
        everything = frozenset(graph.block_names)
        self._constant = np.array([self._weight(everything, name) for name in graph.block_names])

    def step_share(self, computed: frozenset[str]) -> float:
        """Share of a full step of what lives of ``computed``."""
        live = self.pricer.live(computed)
        if self._ms is None:
            return self.pricer.kept_share(live)
        if PREDICTION not in live:
            return 0.0
        dead = (self._ms[name] for name in self._graph.block_names if name not in live and name != PREDICTION)
        return 1 - sum(dead) / self._ms[""]

    def kept(self, computed: ComputeSets) -> float:
        """Mean share over all steps."""
        return sum(map(self.step_share, computed)) / len(computed)

    def weights(self, mask: np.ndarray) -> np.ndarray:
        """Cost of every gate, (steps, blocks), where ``mask`` says which gates are open."""
        if self.attribution != "marginal":
            return np.broadcast_to(self._constant, mask.shape)
        return np.stack([self.marginal(step) for step in sets_from_mask(mask, self._graph.block_names)])

    def alive(self, mask: np.ndarray) -> np.ndarray:
        """For every entry whether its own step's prediction needs the block, or would if it were computed."""
        live, names = self.pricer.live, self._graph.block_names
        return np.array([[name in live(step | {name}) for name in names] for step in sets_from_mask(mask, names)])

    def marginal(self, computed: frozenset[str]) -> np.ndarray:
        """For every block, the step's share with it minus the share without it."""
        if computed not in self._marginal:
            self._marginal[computed] = np.array([self._difference(computed, name) for name in self._graph.block_names])
        return self._marginal[computed]

    def _difference(self, computed: frozenset[str], name: str) -> float:
        return self.step_share(computed | {name}) - self.step_share(computed - {name})

    def _weight(self, everything: frozenset[str], name: str) -> float:
        if self.attribution == "equal":
            return 1.0
        if self.attribution == "own":
            return self._own(name)
        return self._difference(everything, name)

    def _own(self, name: str) -> float:
        if self._ms is not None:
            return self._ms.get(name, 0.0) / self._ms[""]
        return self.pricer.own_share(name)


def block_milliseconds(model: LoadedModel, graph: BlockGraph, rows: int = 1, repeats: int = 5) -> dict[str, float]:
    """Median wall time in ms of every block of the live model in a full step of ``rows``; "" is the whole step."""
    spent: dict[str, list[float]] = {name: [] for name in (*graph.block_names, "")}
    inputs, on_gpu = model.example_inputs(rows), next(model.module.parameters()).is_cuda

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return 1e3 * time.perf_counter()

    def gate(block: str, forward: Callable[..., Any], args: Iterable[Any], kwargs: dict[str, Any]) -> Any:
        started = now()
        feature = forward(*args, **kwargs)
        spent[block].append(now() - started)
        return feature

    names = [name for name in graph.block_names if name != PREDICTION]
    with torch.no_grad(), gated(model.module, names, gate):
        for _ in range(repeats + 1):
            started = now()
            model.forward(**inputs)
            spent[""].append(now() - started)
    return {name: _median(times[1:]) for name, times in spent.items()}


def _median(times: Sequence[float]) -> float:
    """0 for the prediction, which is no module of its own."""
    return median(times) if times else 0.0

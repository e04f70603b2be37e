"""Training of a pruner: a few hundred gradient steps through the whole denoising chain (DiP-GO §3.3).

1. An iteration's number names its batch of noises and classes, and its ratio: it does not depend on what ran before.
2. Gates are hard on the way forward. What descends is the consistency of the pruned images with the full run's.
3. Budget ``penalty`` (the paper's): a gate is the winner of its vote, its gradient that of the vote's probability, and
   ``sparsity_weight`` × cost is added while more than ``floor`` of the compute is kept (their α and τ).
4. Budget ``projection``: a ratio is drawn and the best entries that it has room for are open. The price of compute is
   what the open gates gain by it on average; entries that gain more than they cost rise, the others fall. The direction
   is brought to length 1 per entry (root mean square), as only the order of scores matters.
5. The learning rate follows half a cosine from its start to 0 at the last iteration; gradients are clipped.
6. State is the pruner, the optimiser's moments, the iteration and what was measured: a run continued from it is the
   run itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.search.cost import GateCost, block_milliseconds
from dipgo_deploy.search.dipgo_options import DipgoOptions
from dipgo_deploy.search.objective import Objective
from dipgo_deploy.search.pricing import Pricer
from dipgo_deploy.search.pruner import Pruner, PrunerShape, spread_prior
from dipgo_deploy.search.threshold import mask_of_ratio, sets_of

__all__ = ["Iteration", "Training"]


@dataclass(frozen=True)
class Iteration:
    """What iteration ``done`` of ``total`` found before its step: losses, share of compute kept; wall time in s."""

    done: int
    total: int
    consistency: float
    cost: float
    kept: float
    seconds: float


class Training:
    """A pruner in training.

    Args:
        model: the network to prune.
        graph: its blocks.
        contract: sampler, steps and guidance.
        kind: what a reused block stands for.
        options: see DipgoOptions.
        table: latencies that costs are counted in; MACs if not given.
    """

    def __init__(
        self,
        model: LoadedModel,
        graph: BlockGraph,
        contract: Contract,
        kind: Kind,
        options: DipgoOptions,
        table: LatencyTable | None = None,
    ) -> None:
        self.model, self.graph, self.contract, self.kind, self.options = model, graph, contract, kind, options
        self.table = table
        shape = PrunerShape(contract.sampler.calls, len(graph.blocks), options.width, options.hidden, options.encoder)
        prior = spread_prior(shape.steps, shape.blocks, options.prior) if options.budget == "projection" else None
        self.pruner = Pruner(shape, options.seed, prior)
        self.pricer = Pricer(graph, kind, table)
        self.objective = Objective(model, graph, contract, kind, options)
        self.optimiser = _optimiser(self.pruner, options)
        self.done, self.seconds, self._spent_before = 0, 0.0, 0.0
        self._ms: dict[str, float] = {}

    @property
    def spent(self) -> float:
        """Cost so far in full trajectories of one image, those before a restart included."""
        return self._spent_before + self.objective.spent

    @cached_property
    def cost(self) -> GateCost:
        """Cost of gates; measured in milliseconds on first use, where the options ask for that, and then kept."""
        if self.options.unit == "ms" and not self._ms:
            self._ms = block_milliseconds(self.model, self.graph)
        return GateCost(self.pricer, self.graph, self.options.cost, self._ms or None)

    def run(self) -> Iterator[Iteration]:
        """Train to the last iteration, yielding after each."""
        while self.done < self.options.iterations:
            yield self.step()

    def step(self) -> Iteration:
        """One iteration."""
        started = time.monotonic()
        logits = self.pruner()
        mask = self._mask(logits)
        consistency, gradient = self.objective.gradient(mask, self.cost, self.done)
        if not (math.isfinite(consistency) and gradient.isfinite().all()):
            raise InputError(
                f"iteration {self.done + 1} found a loss or gradient that is no number (loss {consistency}): search in "
                "float32, or with a model whose own run is finite"
            )
        weights = torch.tensor(self.cost.weights(mask), dtype=torch.float32)
        kept = self.cost.kept(sets_of(mask, self.graph, self.pricer))
        self._descend(logits, self._direction(gradient, weights, mask, kept, logits))
        self.done += 1
        took, total = time.monotonic() - started, self.options.iterations
        self.seconds += took
        return Iteration(self.done, total, consistency, float((weights * torch.tensor(mask)).mean()), kept, took)

    def _mask(self, logits: torch.Tensor) -> np.ndarray:
        """Hard gates: the winners of the votes, or the best entries that the iteration's ratio has room for."""
        if self.options.budget == "penalty":
            mask: np.ndarray = (logits > 0).numpy()
            mask[0] = True
            return mask
        low, high = self.options.ratios
        ratio = low + (high - low) * np.random.default_rng((self.options.seed, self.done)).random()
        return mask_of_ratio(logits.detach().double().numpy(), self.graph, self.pricer, ratio)

    def _direction(
        self, gradient: torch.Tensor, cost: torch.Tensor, mask: np.ndarray, kept: float, logits: torch.Tensor
    ) -> torch.Tensor:
        """What the logits descend: the loss's gradient by them, or what entries lose by being open at the price."""
        if self.options.budget == "penalty":
            probability = torch.sigmoid(logits.detach())
            weight = self.options.sparsity_weight if kept > self.options.floor else 0.0
            return (gradient + weight * cost / cost.numel()) * probability * (1 - probability)
        opened = torch.as_tensor(mask) & (cost > 0)
        price = -gradient[opened].sum() / cost[opened].sum().clamp_min(1e-12)
        direction = gradient + price.clamp_min(0) * cost
        direction[0] = 0
        return direction / direction.square().mean().sqrt().clamp_min(1e-12)

    @torch.no_grad()
    def scores(self) -> np.ndarray:
        """Probability to keep, (steps, blocks), float64."""
        return torch.sigmoid(self.pruner().double()).numpy()

    def _descend(self, logits: torch.Tensor, direction: torch.Tensor) -> None:
        options = self.options
        for group in self.optimiser.param_groups:
            group["lr"] = options.learning_rate * (1 + math.cos(math.pi * self.done / options.iterations)) / 2
        self.optimiser.zero_grad()
        logits.backward(direction)  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.pruner.parameters(), options.clip)
        self.optimiser.step()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a continued run needs, by name."""
        tensors = {f"pruner.{name}": tensor for name, tensor in self.pruner.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        tensors |= {f"ms.{name}": torch.tensor(value, dtype=torch.float64) for name, value in self._ms.items()}
        return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor], done: int, spent: float = 0.0, seconds: float = 0.0) -> None:
        """Go on from a ``state`` after ``done`` iterations. Raises InputError where it belongs to another pruner."""
        own = {name: tensors[f"pruner.{name}"] for name in self.pruner.state_dict() if f"pruner.{name}" in tensors}
        try:
            self.pruner.load_state_dict(own)
        except RuntimeError as error:
            line = first_line(error)
            raise InputError(f"the pruner's file holds another pruner ({line}): name another file") from None
        state = self.optimiser.state_dict()
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, field = name.split(".")
                moments.setdefault(int(index), {})[field] = tensor
        self.optimiser.load_state_dict({**state, "state": moments})
        self._ms = {name[3:]: float(value) for name, value in tensors.items() if name.startswith("ms.")}
        self.done, self.seconds, self._spent_before = done, seconds, spent


def _optimiser(pruner: Pruner, options: DipgoOptions) -> torch.optim.Optimizer:
    kinds: Mapping[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}
    arguments: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay, "fused": True}
    return kinds[options.optimiser](list(pruner.parameters()), **arguments)

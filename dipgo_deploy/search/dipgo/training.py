"""Training of a pruner: gradient steps through the whole denoising chain (DiP-GO §3.3).

1. The number of an iteration determines its batch of noises and classes, and its ratio. Earlier iterations do not
   matter for it.
2. Gates are hard in the forward pass. The loss is the consistency of the pruned images with the full run's.
3. Budget ``penalty`` (the paper's): a gate is the winner of its vote, and its gradient is that of the vote's
   probability. ``sparsity_weight`` × cost is added while more than ``floor`` of the compute is kept (DiP-GO's α and τ).
4. Budget ``projection``: a ratio is drawn, and the best entries that fit are open. The price of compute is the average
   gain of the open gates per cost. Entries that gain more than they cost rise, the others fall. The direction is scaled
   to length 1 per entry (root mean square), as only the order of scores matters.
5. The learning rate follows half a cosine from its start to 0 at the last iteration. Gradients are clipped.
6. The state is the pruner, the optimiser's moments and the iteration. A run continued from its state equals the whole
   run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.core.progress import Progress
from dipgo_deploy.search.cost import GateCost, Pricer
from dipgo_deploy.search.dipgo.objective import Objective
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.dipgo.pruner import Pruner, PrunerShape, spread_prior
from dipgo_deploy.search.dipgo.threshold import mask_of_ratio, sets_of
from dipgo_deploy.search.problem import Problem

__all__ = ["Training", "scores_of"]


class Training:
    """A pruner in training.

    Args:
        problem: model, blocks, contract and options, with DipgoOptions for settings.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.options = problem, problem.options.settings_as(DipgoOptions)
        self.graph, self._seed, options = problem.graph, problem.options.seed, self.options
        steps, blocks = problem.contract.sampler.calls, len(self.graph.blocks)
        prior = spread_prior(steps, blocks, options.prior) if options.budget == "projection" else None
        shape = PrunerShape(steps, blocks, options.width, options.hidden, options.encoder)
        self.pruner = Pruner(shape, self._seed, prior)
        self.pricer = Pricer(self.graph, problem.options.kind, problem.options.latency)
        self.cost = GateCost(self.pricer, self.graph, options.cost)
        self.objective = Objective(problem)
        self.optimiser = _optimiser(self.pruner, options)
        self.done, self.seconds, self._cost_before = 0, 0.0, 0.0

    @property
    def search_cost(self) -> float:
        """Cost so far in full trajectories of one image, those before a restart included."""
        return self._cost_before + self.objective.search_cost

    def run(self) -> Iterator[Progress]:
        """Train to the last iteration, yielding after each."""
        while self.done < self.options.iterations:
            yield self.step()

    def step(self) -> Progress:
        """One iteration. The text says its loss, cost and kept share of compute, all before the step."""
        started = time.monotonic()
        logits = self.pruner()
        mask = self._mask(logits)
        consistency, gradient = self.objective.gradient(mask, self.cost, self.done)
        if not (math.isfinite(consistency) and gradient.isfinite().all()):
            raise InputError(
                f"iteration {self.done + 1} met a loss or gradient that is not finite (loss {consistency}): search in "
                "float32, or with a model whose own run is finite"
            )
        weights = torch.tensor(self.cost.weights(mask), dtype=torch.float32)
        kept = self.cost.kept(sets_of(mask, self.graph, self.pricer))
        self._descend(logits, self._direction(gradient, weights, mask, kept, logits))
        self.done += 1
        self.seconds += time.monotonic() - started
        cost = float((weights * torch.tensor(mask)).mean())
        text = f"loss {consistency:.6g}, cost {cost:.6g}, kept {kept:.6g}"
        return Progress("training", self.done, self.options.iterations, text)

    def _mask(self, logits: torch.Tensor) -> np.ndarray:
        """Hard gates: the winners of the votes, or the best entries that fit the iteration's ratio."""
        if self.options.budget == "penalty":
            mask: np.ndarray = (logits > 0).numpy()
            mask[0] = True
            return mask
        low, high = self.options.ratios
        ratio = low + (high - low) * np.random.default_rng((self._seed, self.done)).random()
        return mask_of_ratio(logits.detach().double().numpy(), self.graph, self.pricer, ratio)

    def _direction(
        self, gradient: torch.Tensor, cost: torch.Tensor, mask: np.ndarray, kept: float, logits: torch.Tensor
    ) -> torch.Tensor:
        """The gradient by the logits: that of the loss, or the loss of each entry by being open at the price."""
        if self.options.budget == "penalty":
            probability = torch.sigmoid(logits.detach())
            weight = self.options.sparsity_weight if kept > self.options.floor else 0.0
            return (gradient + weight * cost / cost.numel()) * probability * (1 - probability)
        opened = torch.as_tensor(mask) & (cost > 0)
        price = -gradient[opened].sum() / cost[opened].sum().clamp_min(1e-12)
        direction = gradient + price.clamp_min(0) * cost
        direction[0] = 0
        return direction / direction.square().mean().sqrt().clamp_min(1e-12)

    def scores(self) -> np.ndarray:
        """Probability to keep, (steps, blocks), float64."""
        return scores_of(self.pruner)

    def _descend(self, logits: torch.Tensor, direction: torch.Tensor) -> None:
        options = self.options
        for group in self.optimiser.param_groups:
            group["lr"] = options.learning_rate * (1 + math.cos(math.pi * self.done / options.iterations)) / 2
        self.optimiser.zero_grad()
        logits.backward(direction)  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.pruner.parameters(), options.clip)
        self.optimiser.step()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, by name."""
        tensors = {f"pruner.{name}": tensor for name, tensor in self.pruner.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}

    def restore(
        self, tensors: Mapping[str, torch.Tensor], done: int, search_cost: float = 0.0, seconds: float = 0.0
    ) -> None:
        """Continue from a state.

        Args:
            tensors: the result of ``state``.
            done: finished iterations.
            search_cost: full trajectories of one image so far.
            seconds: training time so far.

        Raises:
            InputError: the state belongs to another pruner.
        """
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
        self.done, self.seconds, self._cost_before = done, seconds, search_cost


@torch.no_grad()
def scores_of(pruner: Pruner) -> np.ndarray:
    """Probability to keep, (steps, blocks), float64."""
    scores: np.ndarray = torch.sigmoid(pruner().double()).numpy()
    return scores


def _optimiser(pruner: Pruner, options: DipgoOptions) -> torch.optim.Optimizer:
    kinds: Mapping[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}
    arguments: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay, "fused": True}
    return kinds[options.optimiser](list(pruner.parameters()), **arguments)

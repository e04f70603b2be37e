"""The objective of a gradient search: consistency of pruned and full images, and its gradient for every gate."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from dipgo_deploy.models import LoadedModel
from dipgo_deploy.search.calibration import Calibration, calibrate
from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.dipgo.losses import CONSISTENCY
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.problem import Problem
from dipgo_deploy.supernet.chain import SoftChain
from dipgo_deploy.supernet.memory import GradientMemory, free_bytes, gradient_memory, measure_step, recompute_for

__all__ = ["Objective"]


class Objective:
    """The loss of hard gates on numbered batches of noise. The full run of a batch is made once and kept.

    ``search_cost`` counts full trajectories of one image: one for the full run of each image, and those of gradients. A
    called step counts once for its forward pass and twice for its backward pass. The first step has no backward pass. A
    step that is not called counts once, for the gain of its gate. Recomputation to save memory is not counted, so that
    a search with a budget ends at the same point on every machine.

    Args:
        problem: model, blocks, contract and options, with DipgoOptions for settings.
    """

    def __init__(self, problem: Problem) -> None:
        self.model, self.graph, self.contract = problem.model, problem.graph, problem.contract
        self.options, self._shared = problem.options.settings_as(DipgoOptions), problem.options
        self.kind, self.search_cost = problem.options.kind, 0.0
        self._pool: dict[int, Calibration] = {}

    @cached_property
    def memory(self) -> GradientMemory:
        """Memory of a gradient step, with the choice of what to recompute if ``checkpoint`` is ``auto``.

        All steps are assumed to be called, so this is an upper bound.
        """
        model, options, calls = self._model, self.options, self.contract.sampler.calls
        step = measure_step(model, self.graph, self.contract, self.kind)
        if options.checkpoint != "auto":
            return gradient_memory(step, calls, options.batch, options.checkpoint)
        free = free_bytes(next(model.module.parameters()).device)
        return gradient_memory(step, calls, options.batch, recompute_for(step, calls, options.batch, free // 2))

    @cached_property
    def chain(self) -> SoftChain:
        """All steps under gates."""
        return SoftChain(self._model, self.graph, self.contract, self.kind, self.memory.checkpoint)

    @cached_property
    def _model(self) -> LoadedModel:
        return self.model.as_dtype(self.options.dtype or self.model.dtype)

    def gradient(self, mask: np.ndarray, cost: GateCost, number: int) -> tuple[float, torch.Tensor]:
        """Loss on batch ``number`` under the hard gates ``mask``, and its gradient by every gate, (steps, blocks)."""
        return self.gradient_on(self.batch(number), mask, cost)

    def gradient_on(self, batch: Calibration, mask: np.ndarray, cost: GateCost) -> tuple[float, torch.Tensor]:
        """Like ``gradient``, on a given batch, whose full run is not counted.

        An entry that its own step's prediction would not need has no gradient. In a step without a call, the gate of
        the prediction gets the gain of computing the step in full.

        Args:
            batch: noise, conditioning and full images.
            mask: hard gates (steps, blocks).
            cost: cost of gates.

        Returns:
            The loss, and its gradient (steps, blocks).
        """
        gates = torch.tensor(mask, dtype=torch.float32).requires_grad_()
        alive = cost.alive(mask)
        trajectory = self.chain.run(
            gates, batch.noise, batch.conditioning,
            live=torch.tensor(alive), guidance_scale=batch.guidance_scale, seed=0,
        )  # fmt: skip
        full = torch.from_numpy(batch.images).to(trajectory.image)
        loss = CONSISTENCY[self.options.loss](trajectory.image, full)
        if loss.requires_grad:  # A run of one step has no gate with a gradient.
            loss.backward()  # type: ignore[no-untyped-call]
        gradient = torch.zeros_like(gates) if gates.grad is None else gates.grad * torch.as_tensor(alive)
        for step, gain in trajectory.closed_gradients().items():
            gradient[step, -1] += gain
        closed = len(trajectory.closed)
        self.search_cost += batch.count * (closed + 3 * (len(mask) - 1 - closed) + 1) / len(mask)
        return float(loss.detach()), gradient

    def batch(self, number: int) -> Calibration:
        """Noises of batch ``number`` and their full images. After ``pool`` batches the first comes again."""
        number %= self.options.pool
        if number not in self._pool:
            options = self.options
            first = options.first_seed + number * options.batch
            seeds = range(first, first + options.batch)
            self._pool[number] = calibrate(
                self.model, self.graph, self.contract, seeds,
                classes=self._shared.classes, guidance_scale=self._shared.guidance_scale,
            )  # fmt: skip
            self.search_cost += options.batch
        return self._pool[number]

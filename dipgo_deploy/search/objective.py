"""What a gradient search descends: the consistency of pruned images with full ones, and its gradient by every gate."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.search.calibration import Calibration, calibrate
from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.dipgo_options import DipgoOptions
from dipgo_deploy.search.losses import CONSISTENCY
from dipgo_deploy.supernet.chain import SoftChain
from dipgo_deploy.supernet.memory import GradientMemory, free_bytes, gradient_memory, measure_step, recompute_for

__all__ = ["Objective"]


class Objective:
    """The loss of hard gates on batches of noise that a number names; every batch's full run is made once and kept.

    ``spent`` counts full trajectories of one image, one for the full run of each image besides what gradients take. A
    step that is called counts once for its pass forward and twice for the one backward; the first, which has no way
    back, once; a step that is not called once, for its gate's gain. What is computed again to save memory is not
    counted: a search that ends when enough is spent ends at the same point on every machine.
    """

    def __init__(
        self, model: LoadedModel, graph: BlockGraph, contract: Contract, kind: Kind, options: DipgoOptions
    ) -> None:
        self.model, self.graph, self.contract, self.options = model, graph, contract, options
        self.kind, self.spent = kind, 0.0
        self._pool: dict[int, Calibration] = {}

    @cached_property
    def memory(self) -> GradientMemory:
        """What a gradient step will hold; settles what is computed again, where the options leave that to the memory.

        Every step is taken as called, so it is the most that can be needed.
        """
        model, options, calls = self._model, self.options, self.contract.sampler.calls
        step = measure_step(model, self.graph, self.contract, self.kind)
        recompute = options.checkpoint
        if recompute == "auto":
            free = free_bytes(next(model.module.parameters()).device)
            recompute = recompute_for(step, calls, options.batch, free // 2)
        return gradient_memory(step, calls, options.batch, recompute)

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
        """As ``gradient``, on a batch from elsewhere, whose full run is not counted.

        No gradient reaches an entry that its own step's prediction would not need, but that of a step that makes no
        call: its prediction's gate gets what the step would gain by being computed in full.
        """
        gates = torch.tensor(mask, dtype=torch.float32).requires_grad_()
        alive = cost.alive(mask)
        trajectory = self.chain.run(
            gates, batch.noise, batch.conditioning,
            live=torch.tensor(alive), guidance_scale=batch.guidance_scale, seed=0,
        )  # fmt: skip
        full = torch.from_numpy(batch.images).to(trajectory.image)
        loss = CONSISTENCY[self.options.loss](trajectory.image, full)
        if loss.requires_grad:  # A run of one step has no gate to descend by.
            loss.backward()  # type: ignore[no-untyped-call]
        gradient = torch.zeros_like(gates) if gates.grad is None else gates.grad * torch.as_tensor(alive)
        for step, gain in trajectory.closed_gradients().items():
            gradient[step, -1] += gain
        closed = len(trajectory.closed)
        self.spent += batch.count * (closed + 3 * (len(mask) - 1 - closed) + 1) / len(mask)
        return float(loss.detach()), gradient

    def batch(self, number: int) -> Calibration:
        """Noises of batch ``number`` and their full images; after ``pool`` batches the first comes again."""
        number %= self.options.pool
        if number not in self._pool:
            options = self.options
            first = options.first_seed + number * options.batch
            seeds = range(first, first + options.batch)
            self._pool[number] = calibrate(
                self.model, self.graph, self.contract, seeds,
                classes=options.classes, guidance_scale=options.guidance_scale,
            )  # fmt: skip
            self.spent += options.batch
        return self._pool[number]

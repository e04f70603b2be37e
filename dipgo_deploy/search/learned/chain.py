"""The chain of calls as a differentiable function of a sampler's numbers.

Every number is that of the start plus a correction, and all corrections begin at zero (GAS, arXiv 2510.17699).

1. The regressors of a call are almost collinear, because a trajectory is smooth. So corrections are measured in an
   orthonormal basis of the regressors that the start meets. A unit then moves the result by one root mean square.
2. A correction of a time is measured in the mean distance of the start's times.
3. Corrections and coefficients are float64, states are float32 or wider, and the network keeps its own dtype.
4. Each call can be recomputed in the backward pass. Then the chain needs the memory of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dipgo_deploy.core.learned_sampler import Combination, LearnedSampler
from dipgo_deploy.supernet.network import GuidedNetwork

__all__ = ["CallContext", "LearnedChain"]

CallContext = Callable[[int], AbstractContextManager[object]]
"""What surrounds the network at a call, such as constants of its own in place of its time embedding."""

_SMALLEST = 1e-7
"""Share of the largest singular value below which a direction of the regressors is not moved."""

_CLOSEST = 1e-3
"""Smallest distance of neighbouring times, as a share of their mean distance."""


class LearnedChain(nn.Module):
    """A sampler with corrections as parameters.

    Args:
        start: the sampler before any correction.
        network, noise: of images on which the start's regressors are measured, noise (B, C, ...).
        recompute: whether the backward pass runs each call again.
        context: what surrounds the network at each call. The parameters of a module are learned too.
    """

    def __init__(
        self,
        start: LearnedSampler,
        network: GuidedNetwork,
        noise: torch.Tensor,
        *,
        recompute: bool = False,
        context: CallContext | None = None,
    ) -> None:
        super().__init__()
        self.start, self.recompute = start, recompute
        self.context: CallContext = context or _no_context
        device = network.device
        times = torch.tensor(start.timesteps, dtype=torch.float64, device=device)
        self.spread = float(times[0] - times[-1]) / max(1, len(times) - 1) or float(times[0]) or 1.0
        self.register_buffer("base_times", times)
        self.times = nn.Parameter(torch.zeros_like(times))
        self.states = nn.ParameterList()
        self.inputs = nn.ParameterList()
        self._bases: dict[str, list[torch.Tensor]] = {"states": [], "inputs": []}
        self._measure(network, noise.to(device) * start.initial_scale)

    @torch.no_grad()
    def _measure(self, network: GuidedNetwork, noise: torch.Tensor) -> None:
        """Run the start, and make the basis of every call's regressors."""
        state, outputs = noise, list[torch.Tensor]()
        for call, time in enumerate(self.base_times):
            if self.start.inputs:
                self._add("inputs", [state, noise, *outputs], self.start.inputs[call])
            entering = self._entering(call, state, noise, outputs)
            with self.context(call):
                outputs.insert(0, network.guided(network(entering, time)))
            self._add("states", [state, noise, *outputs], self.start.states[call])
            state = self._combined("states", call, state, noise, outputs)

    def _add(self, name: str, regressors: Sequence[torch.Tensor], row: Combination) -> None:
        chosen = _chosen(regressors, row)
        columns = torch.stack([column.double().flatten() for column in chosen])
        gram = columns @ columns.T / columns.shape[1]
        norms = gram.diagonal().sqrt().clamp(min=1e-30)
        values, vectors = torch.linalg.eigh(gram / norms[:, None] / norms[None, :])
        kept = values > _SMALLEST * values[-1]
        basis = (vectors[:, kept] / values[kept].sqrt()) / norms[:, None]
        self._bases[name].append(basis)
        getattr(self, name).append(nn.Parameter(torch.zeros(basis.shape[1], dtype=torch.float64, device=basis.device)))

    def coefficients(self, name: str, call: int) -> torch.Tensor:
        """Float64 coefficients of ``states`` or ``inputs`` of a call: state, noise where it is used, outputs."""
        row: Combination = getattr(self.start, name)[call]
        base = [row.state, *([row.noise] if _has_noise(row) else []), *row.outputs]
        basis = self._bases[name][call]
        own: torch.Tensor = getattr(self, name)[call]
        return torch.tensor(base, dtype=torch.float64, device=basis.device) + basis @ own

    def network_times(self) -> torch.Tensor:
        """Float64 times of the calls."""
        return self.base_times + self.spread * self.times

    @torch.no_grad()
    def keep_order(self, earliest: float, latest: float) -> None:
        """Move times that left their order or their range back to its edge.

        Args:
            earliest: greatest time that the model knows.
            latest: smallest time.
        """
        times, gap = self.network_times(), _CLOSEST * self.spread
        for call in range(len(times)):
            times[call] = times[call].clamp(latest, earliest if call == 0 else float(times[call - 1]) - gap)
        self.times.copy_((times - self.base_times) / self.spread)

    def forward(self, network: GuidedNetwork, noise: torch.Tensor) -> torch.Tensor:
        """Draw images.

        Args:
            network: the conditioned network of these images.
            noise: standard normal (B, C, ...), float32 or wider.

        Returns:
            The images (B, C, ...).
        """
        first = noise.to(network.device, network.sampler_dtype) * self.start.initial_scale
        state, outputs, times = first, list[torch.Tensor](), self.network_times()

        def run(call: int, entering: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            # The backward pass may run this again, and then needs the same constants.
            with self.context(call):
                return network.guided(network(entering, time))

        for call in range(self.start.calls):
            entering = self._entering(call, state, first, outputs)
            if self.recompute and torch.is_grad_enabled():
                output = checkpoint(run, call, entering, times[call], use_reentrant=False, preserve_rng_state=False)
            else:
                output = run(call, entering, times[call])
            outputs.insert(0, output)
            state = self._combined("states", call, state, first, outputs)
        return state

    def sampler(self) -> LearnedSampler:
        """The sampler with its corrections, without a record of how it was made."""
        rows = {
            name: tuple(self._row(name, call) for call in range(len(getattr(self, name))))
            for name in ("states", "inputs")
        }
        times = tuple(float(time) for time in self.network_times().detach().float())
        grid = self.start.grid or self.start.timesteps
        return LearnedSampler(times, rows["states"], rows["inputs"], grid, self.start.initial_scale)

    def _row(self, name: str, call: int) -> Combination:
        row: Combination = getattr(self.start, name)[call]
        state, *rest = self.coefficients(name, call).detach().tolist()
        noise = rest.pop(0) if _has_noise(row) else 0.0
        return Combination(state, noise, tuple(rest))

    def _entering(
        self, call: int, state: torch.Tensor, noise: torch.Tensor, outputs: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        return self._combined("inputs", call, state, noise, outputs) if self.start.inputs else state

    def _combined(
        self, name: str, call: int, state: torch.Tensor, noise: torch.Tensor, outputs: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        regressors = _chosen([state, noise, *outputs], getattr(self.start, name)[call])
        coefficients = self.coefficients(name, call).to(state.dtype)
        return torch.stack([c * column for c, column in zip(coefficients, regressors, strict=True)]).sum(0)


def _no_context(call: int) -> AbstractContextManager[object]:
    return nullcontext()


def _has_noise(row: Combination) -> bool:
    return row.noise != 0.0


def _chosen(regressors: Sequence[torch.Tensor], row: Combination) -> list[torch.Tensor]:
    """The tensors that a combination reads, out of state, noise and all outputs, newest first."""
    state, noise, *outputs = regressors
    return [state, *([noise] if _has_noise(row) else []), *outputs[: len(row.outputs)]]

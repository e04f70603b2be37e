"""Effect of a held output on the final image, to first order.

Let ``x_i`` be the latent and ``e_i`` the guided output of step i on the full run. If step i is computed and then no
step before j, e_s is replaced by e_i for i < s < j. The effect on the image has two parts:

1. *Inside the segment* no network runs. The sampler alone carries the errors on, and it is linear: the errors of one
   segment add up as vectors, sum_s w_s (e_i - e_s). They mostly share their direction, so a sum of squared step errors
   would underestimate long segments.
2. *From step j on* the network sees the disturbed latent and corrects most of an early disturbance. The sampler's
   coefficients alone miss that and overrate early steps (on digits-unet, 10 of 50 steps: 2 dB worse). So the adjoint of
   the full run follows the disturbance through sampler and network. For a random image ``v`` of unit covariance, one
   backward pass gives the gradient of <v, image> by the state at every j, and E_v <v, d image>^2 = |d image|^2.

Errors of different segments are added as squares. That makes the total a sum over segments, which a dynamic program
needs. It is exact where the directions are unrelated. They are not quite: held outputs always lag, so totals come out
too small. Adding roots instead (all errors in one direction) gave paths worse by 0.1 to 0.7 dB there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dipgo_deploy.core.sampler import LinearSampler, Update
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.calibration import Calibration
from dipgo_deploy.supernet.network import GuidedNetwork
from dipgo_deploy.supernet.rollout import reference_trajectory

__all__ = ["FullRun", "holding_costs", "random_probes", "record_full_run"]


@dataclass(frozen=True)
class FullRun:
    """Latents ``x_i`` before each step and guided outputs ``e_i``, each (B, C, H, W), and the network behind them."""

    network: GuidedNetwork
    timesteps: tuple[float, ...]
    latents: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


def record_full_run(calibration: Calibration, full: Schedule, sampler: LinearSampler) -> FullRun:
    """Run the full schedule from the calibration's noise, and keep all latents and outputs."""
    contract, scale = calibration.contract, calibration.guidance_scale
    network = GuidedNetwork(calibration.model, contract, calibration.conditioning, scale)
    start = calibration.noise, calibration.conditioning
    steps = list(reference_trajectory(calibration.model, full, *start, guidance_scale=scale, seed=0))
    first = torch.as_tensor(calibration.noise).to(network.device, network.sampler_dtype) * sampler.initial_scale
    latents = (first, *(step.latent for step in steps[:-1]))
    outputs = tuple(network.guided(step.prediction) for step in steps)
    return FullRun(network, contract.sampler.timesteps, latents, outputs)


def holding_costs(run: FullRun, sampler: LinearSampler, probes: torch.Tensor) -> Iterator[NDArray[np.float64]]:
    """Yield the cost (T,) for j = T down to 1. Entry i is the image's mean squared error if step i is held up to j.

    Args:
        run: the recorded full run.
        sampler: its linear updates.
        probes: (P, B, C, H, W), the ``v`` of the module's docstring.

    Yields:
        One column. It costs a forward and P backward passes of one step.
    """
    adjoint = _Adjoint(sampler, probes)
    for end in range(len(run.outputs), 0, -1):
        yield _column(adjoint.copy(), run.outputs, end)
        adjoint.back_through_sampler(end - 1)
        gradient = _pulled_back(run, sampler.input_scales[end - 1], end - 1, adjoint.outputs[end - 1])
        adjoint.latents[end - 1] = adjoint.latents[end - 1] + gradient


def random_probes(run: FullRun, count: int, seed: int) -> torch.Tensor:
    """``count`` random images (P, B, C, H, W) such that <v, d>^2 is the mean square of d on average."""
    image = run.latents[0]
    drawn = np.random.default_rng(seed).standard_normal((count, *image.shape)) / np.sqrt(image[0].numel())
    return torch.as_tensor(drawn).to(image.device, image.dtype)


class _Adjoint:
    """Gradients of <v, image> by latents and outputs, as far as later steps use them. Each (P, B, C, H, W)."""

    def __init__(self, sampler: LinearSampler, last: torch.Tensor) -> None:
        self.updates: tuple[Update, ...] = sampler.updates
        zero = torch.zeros_like(last)
        self.latents = [*(zero for _ in self.updates), last]
        self.outputs = [zero for _ in self.updates]

    def copy(self) -> _Adjoint:
        """An independent copy. Tensors are never changed in place, so they are shared."""
        other = object.__new__(_Adjoint)
        other.updates, other.latents, other.outputs = self.updates, [*self.latents], [*self.outputs]
        return other

    def back_through_sampler(self, step: int) -> None:
        """Pass the gradient by the latent after ``step`` on to the latents and outputs that the update read."""
        arrived, update = self.latents[step + 1], self.updates[step]
        for age, coefficient in enumerate(update.latents):
            self.latents[step - age] = self.latents[step - age] + coefficient * arrived
        for age, coefficient in enumerate(update.outputs):
            self.outputs[step - age] = self.outputs[step - age] + coefficient * arrived


def _column(adjoint: _Adjoint, outputs: tuple[torch.Tensor, ...], end: int) -> NDArray[np.float64]:
    """Mean squared image error for every start i of a segment that ends before ``end``. 0 where nothing is held."""
    column = np.zeros(len(outputs))
    held, own = torch.zeros_like(adjoint.latents[end]), torch.zeros(adjoint.latents[end].shape[:2])
    for step in range(end - 1, 0, -1):
        adjoint.back_through_sampler(step)
        held = held + adjoint.outputs[step]
        own = own + _inner(adjoint.outputs[step], outputs[step])
        column[step - 1] = float(((_inner(held, outputs[step - 1]) - own) ** 2).mean())
    return column


def _inner(gradient: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Inner products (P, B), accumulated in float64."""
    return (gradient.double() * output.double()).flatten(2).sum(dim=2).cpu()


def _pulled_back(run: FullRun, scale: float, step: int, gradients: torch.Tensor) -> torch.Tensor:
    """Gradients by the latent of ``step`` through its network call, from gradients (P, B, C, H, W) by its output."""
    latent = run.latents[step].detach().requires_grad_()
    with torch.enable_grad():
        output = run.network.guided(run.network(latent * scale, run.timesteps[step]))
    pulled = [torch.autograd.grad(output, latent, gradient, retain_graph=True)[0] for gradient in gradients]
    return torch.stack(pulled)

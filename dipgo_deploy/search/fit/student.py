"""The student: a chain of calls whose coefficients are solved call by call, on the states that the student reaches.

At call i the teacher's state at the next time is regressed on the student's own state and its last outputs. All
elements of all fitted images are rows, so a few trajectories determine a handful of coefficients. Then the student
moves on with its own combination (closed loop), and the last call aims at the teacher's image.

Trials that share their first times share the network calls up to there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dipgo_deploy.core.learned_sampler import Combination, LearnedSampler
from dipgo_deploy.core.metrics import psnr_db
from dipgo_deploy.search.fit.teacher import Teacher

__all__ = ["Student", "Times", "Trial", "solve"]


_REPETITIONS = 6
"""Solutions of one regression. The weights of the first are equal."""

_SMALLEST_ERROR = 1e-9
"""Squared error of an image that counts as none, as a share of the mean square."""


@dataclass(frozen=True)
class Times:
    """Times of a student, descending.

    Attributes:
        states: whose states of the teacher the student aims at. The first is where the noise enters.
        network: what the network is told.
    """

    states: tuple[float, ...]
    network: tuple[float, ...]

    @classmethod
    def coupled(cls, grid: Sequence[float]) -> Times:
        """The network is told the times of the states."""
        return cls(tuple(grid), tuple(grid))


@dataclass(frozen=True)
class Trial:
    """A fitted chain: its times and combinations, and the states and outputs (B, C, ...) of all images.

    ``score`` is the mean PSNR of the held-out images to the teacher's, in dB.
    """

    times: Times
    rows: tuple[Combination, ...]
    states: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    score: float

    def sampler(self, initial_scale: float) -> LearnedSampler:
        """The chain as a learned sampler."""
        grid = () if self.times.states == self.times.network else self.times.states
        return LearnedSampler(self.times.network, self.rows, (), grid, initial_scale)


class Student:
    """Fits chains to a teacher.

    Args:
        teacher: trajectories of the fitted images, then of the held-out images.
        fitted: number of fitted images.
        memory: the most outputs that a combination reads.
        ridge: see FitOptions.
    """

    def __init__(self, teacher: Teacher, fitted: int, memory: int, ridge: float) -> None:
        self.teacher, self.fitted, self.memory, self.ridge = teacher, fitted, memory, ridge
        self.network_calls = 0
        """Network calls so far, of all images together."""

    @torch.inference_mode()
    def fit(self, times: Times, base: Trial | None = None) -> Trial:
        """Fit a chain.

        Args:
            times: of the chain.
            base: an earlier trial of as many calls. What does not depend on changed times is taken from the trial.

        Returns:
            The trial.
        """
        calls = len(times.network)
        same_states, same_outputs = (0, 0) if base is None else _shared(times, base.times)
        states = list(base.states[: same_states + 1]) if base else [self.teacher.noise]
        outputs = list(base.outputs[:same_outputs]) if base else []
        rows = list(base.rows[:same_states]) if base else []
        for call in range(same_states, calls):
            if call == len(outputs):
                outputs.append(self.teacher.network(states[call], times.network[call]))
                self.network_calls += len(states[call])
            target = self.teacher.images if call + 1 == calls else self.teacher.at(times.states[call + 1])
            regressors = [states[call], *reversed(outputs[max(0, call + 1 - self.memory) :])]
            rows.append(self._solve(regressors, target))
            states.append(_combined(rows[-1], regressors))
        score = float(np.mean(self.held_out(states[-1])))
        return Trial(times, tuple(rows), tuple(states), tuple(outputs), score)

    def held_out(self, images: torch.Tensor) -> np.ndarray:
        """PSNR in dB of the held-out images among all images (B, C, ...) to the teacher's."""
        pair = [np.nan_to_num(batch[self.fitted :].cpu().numpy(), nan=1e6) for batch in (images, self.teacher.images)]
        return psnr_db(*pair, clip=False)

    def _solve(self, regressors: Sequence[torch.Tensor], target: torch.Tensor) -> Combination:
        columns = torch.stack([column[: self.fitted].flatten(1).double() for column in regressors])
        shares = solve_robust(columns, target[: self.fitted].flatten(1).double(), self.ridge)
        return Combination(shares[0], 0.0, tuple(shares[1:]))


def solve_robust(columns: torch.Tensor, target: torch.Tensor, ridge: float) -> list[float]:
    """Least squares of logarithms: every image counts by the share of its error that a change removes.

    A few trajectories are much harder than the others. Plain least squares would serve them alone. Weights of one over
    an image's squared error, found by repetition, minimise the mean logarithm of the errors instead.

    Args:
        columns: (K, B, elements), float64.
        target: (B, elements).
        ridge: see ``solve``.

    Returns:
        K coefficients.
    """
    weights = torch.ones(len(target), 1, dtype=target.dtype, device=target.device)
    shares: list[float] = []
    for _ in range(_REPETITIONS):
        shares = solve((columns * weights).flatten(1), (target * weights).flatten(), ridge)
        fitted = torch.tensordot(torch.tensor(shares, dtype=target.dtype, device=target.device), columns, dims=1)
        errors = (fitted - target).square().mean(1, keepdim=True)
        floor = _SMALLEST_ERROR * target.square().mean()
        weights = (errors + floor).rsqrt()
    return shares


def solve(columns: torch.Tensor, target: torch.Tensor, ridge: float) -> list[float]:
    """Least squares with a ridge on normalised columns.

    Args:
        columns: (K, rows), float64.
        target: (rows,).
        ridge: added to the squared norm of every normalised column, which is 1.

    Returns:
        K coefficients.
    """
    norms = columns.norm(dim=1).clamp(min=torch.finfo(columns.dtype).tiny)
    unit = columns / norms[:, None]
    gram = unit @ unit.T + ridge * torch.eye(len(unit), dtype=columns.dtype, device=columns.device)
    # Without a ridge, outputs of close times may be equal, and any of the solutions will do.
    shares = torch.linalg.lstsq(gram.cpu(), (unit @ target).cpu()[:, None], driver="gelsd").solution[:, 0]
    return [float(value) for value in shares / norms.cpu()]


def _combined(row: Combination, regressors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = row.state * regressors[0].double()
    for coefficient, output in zip(row.outputs, regressors[1:], strict=True):
        total += coefficient * output.double()
    return total.to(regressors[0].dtype)


def _shared(new: Times, old: Times) -> tuple[int, int]:
    """Number of states after the first, and of outputs, that do not depend on what differs."""
    calls = len(new.network)
    states = 0
    while (
        states < calls
        and new.network[states] == old.network[states]
        and (states + 1 == calls or new.states[states + 1] == old.states[states + 1])
    ):
        states += 1
    outputs = states + (states < calls and new.network[states] == old.network[states])
    return states, outputs

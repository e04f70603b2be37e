"""A learned sampler as numbers: the times of its network calls, and the coefficients of all that enters them.

Let ``x_0`` be the first latent and ``e_i`` the (guided) output of call i, at the time ``timesteps[i]``. Then

1. call i feeds the network ``x_i``, or the combination ``inputs[i]`` of ``x_i``, ``x_0`` and ``e_(i-1)`` to ``e_0``,
2. ``x_(i+1)`` is the combination ``states[i]`` of ``x_i``, ``x_0`` and ``e_i`` to ``e_0``, and the last is the image.

The family is that of Bespoke Non-Stationary solvers (arXiv 2403.01329): it contains every linear multistep method.
Times of the network need not belong to the noise levels of the states (decoupled times, arXiv 2405.15506).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dipgo_deploy.core.sampler import LinearSampler, Update

__all__ = ["Combination", "LearnedSampler", "read_learned_sampler"]


@dataclass(frozen=True)
class Combination:
    """``state * x_i + noise * x_0 + sum_j outputs[j] * e_(newest - j)``."""

    state: float
    noise: float = 0.0
    outputs: tuple[float, ...] = ()

    def update(self, step: int) -> Update:
        """The same combination over the latents x_step to x_0, newest first."""
        if self.noise == 0.0:
            return Update((self.state,), self.outputs)
        latents = [0.0] * (step + 1)
        latents[0] += self.state
        latents[-1] += self.noise
        return Update(tuple(latents), self.outputs)


@dataclass(frozen=True)
class LearnedSampler:
    """One learned sampler, for one number of calls.

    Attributes:
        timesteps: time that the network is told at each call, strictly descending.
        states: ``states[i]`` gives the state after call i.
        inputs: ``inputs[i]`` gives the network's input at call i. Empty: the network's input is the state.
        grid: noise levels that the states were fitted to, as times. Empty: the timesteps.
        initial_scale: factor from standard normal noise to ``x_0``.
        fitted: how it was fitted, as a text record.
    """

    timesteps: tuple[float, ...]
    states: tuple[Combination, ...]
    inputs: tuple[Combination, ...] = ()
    grid: tuple[float, ...] = ()
    initial_scale: float = 1.0
    fitted: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Check that numbers and lengths belong together. Raises ValueError."""
        calls = len(self.timesteps)
        if calls < 1 or any(later >= earlier for earlier, later in pairwise(self.timesteps)):
            raise ValueError("the timesteps of a learned sampler must be descending numbers")
        if len(self.states) != calls or len(self.inputs) not in (0, calls) or len(self.grid) not in (0, calls):
            raise ValueError(f"a learned sampler of {calls} calls needs as many states, inputs and times of its grid")
        for rows, extra in ((self.states, 1), (self.inputs, 0)):
            for step, row in enumerate(rows):
                if not any((row.state, row.noise, *row.outputs)):
                    raise ValueError(f"call {step} of a learned sampler combines nothing")
                if len(row.outputs) > step + extra:
                    raise ValueError(f"call {step} reads {len(row.outputs)} outputs, but only {step + extra} exist")
        if not all(map(math.isfinite, self._numbers)):
            raise ValueError("a learned sampler holds numbers that are not finite")

    @property
    def calls(self) -> int:
        """Number of network calls."""
        return len(self.timesteps)

    @property
    def memory(self) -> int:
        """The most outputs that one combination reads."""
        return max(len(row.outputs) for row in (*self.states, *self.inputs))

    @property
    def linear(self) -> LinearSampler:
        """The coefficients as programs take them."""
        return LinearSampler(
            self.initial_scale,
            (1.0,) * self.calls,
            tuple(row.update(step) for step, row in enumerate(self.states)),
            tuple(row.update(step) for step, row in enumerate(self.inputs)),
        )

    @property
    def document(self) -> dict[str, Any]:
        """The sampler as JSON values. A combination is the list of its state, its noise and its outputs."""
        return {
            "timesteps": list(self.timesteps),
            "states": [[row.state, row.noise, *row.outputs] for row in self.states],
            "inputs": [[row.state, row.noise, *row.outputs] for row in self.inputs],
            "grid": list(self.grid),
            "initial_scale": self.initial_scale,
            "fitted": dict(self.fitted),
        }

    @property
    def _numbers(self) -> list[float]:
        rows = [value for row in (*self.states, *self.inputs) for value in (row.state, row.noise, *row.outputs)]
        return [*self.timesteps, *self.grid, *rows, self.initial_scale]


def read_learned_sampler(document: Any) -> LearnedSampler:
    """The sampler of a document.

    Args:
        document: as ``LearnedSampler.document`` gives it, from a file that may be damaged.

    Returns:
        The sampler.

    Raises:
        ValueError: the document is no learned sampler.
    """
    if not isinstance(document, Mapping) or not {"timesteps", "states"} <= document.keys():
        raise ValueError("a learned sampler needs timesteps and states")
    fitted = document.get("fitted", {})
    if not isinstance(fitted, Mapping):
        raise ValueError("'fitted' of a learned sampler must be an object")
    return LearnedSampler(
        _floats("timesteps", document["timesteps"]),
        _rows("states", document["states"]),
        _rows("inputs", document.get("inputs", [])),
        _floats("grid", document.get("grid", [])),
        _floats("initial_scale", [document.get("initial_scale", 1.0)])[0],
        {str(key): str(value) for key, value in fitted.items()},
    )


def _rows(name: str, values: Any) -> tuple[Combination, ...]:
    rows = [_floats(name, row) for row in _list(name, values)]
    if any(len(row) < 2 for row in rows):
        raise ValueError(f"'{name}' of a learned sampler needs the coefficients of state and noise in every row")
    return tuple(Combination(row[0], row[1], row[2:]) for row in rows)


def _floats(name: str, values: Any) -> tuple[float, ...]:
    numbers = _list(name, values)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers):
        raise ValueError(f"'{name}' of a learned sampler must hold numbers")
    return tuple(map(float, numbers))


def _list(name: str, values: Any) -> Sequence[Any]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"'{name}' of a learned sampler must be a list")
    return values

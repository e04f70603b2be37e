"""How far one run is from another: relative differences, slot by slot and step by step.

Every comparison is ``max |a - b|`` over the largest reference value. *Local* differences feed each graph with the
reference's slots, so that one graph's error is not another's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dipgo_deploy.core.program import Program, Run
from dipgo_deploy.runtime.generate import Inputs
from dipgo_deploy.runtime.session import Session

__all__ = ["Deviation", "Recording", "local_deviations", "record_run", "relative_difference"]


@dataclass(frozen=True)
class Recording:
    """A whole trajectory: the outputs of every graph and the latents it was given, by name and step; the image."""

    values: Mapping[tuple[str, int], np.ndarray]
    image: np.ndarray


@dataclass(frozen=True)
class Deviation:
    """A relative difference, and the value and step where it was found."""

    value: str
    step: int
    relative: float


def relative_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """``max |found - wanted|`` over the largest absolute value wanted; infinite where either is not finite."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return float("inf")
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))


def record_run(session: Session, inputs: Inputs, seed: int) -> Recording:
    """A whole run of ``session``, with all that its graphs gave."""
    values = {(name, step): session.slot(slot) for name, step, slot in _given(session, inputs, seed)}
    return Recording(values, session.slot(session.program.image))


def local_deviations(session: Session, inputs: Inputs, seed: int, wanted: Recording) -> Iterator[Deviation]:
    """Deviation of what each call gives, which is then replaced by the reference's: so every graph is fed the latter.

    Only values that the reference lacks, between several segments of one step, are the candidate's own.
    """
    for name, step, slot in _given(session, inputs, seed):
        reference = wanted.values.get((name, step))
        if reference is not None:
            yield Deviation(name, step, relative_difference(session.slot(slot), reference))
            session.write(slot, reference)


def _given(session: Session, inputs: Inputs, seed: int) -> Iterator[tuple[str, int, str]]:
    """Run the session; after each call name, step and slot of what it gave to a graph or a graph gave."""
    values = _values_of_calls(session.program)
    for index, _ in session.iterate(*inputs, seed=seed):
        yield from values[index]


def _values_of_calls(program: Program) -> list[list[tuple[str, int, str]]]:
    """For every call the outputs of its graph, or the inputs of later graphs that it made: name, step and slot."""
    values: list[list[tuple[str, int, str]]] = [[] for _ in program.calls]
    makers: dict[str, int] = {}
    for index, call in enumerate(program.calls):
        if not isinstance(call, Run):
            makers[call.target] = index
            continue
        for name, slot in call.inputs:
            if name in program.graph_of_name[call.graph].inputs and slot in makers:
                values[makers[slot]].append((name, call.step, slot))
        values[index] = [(name, call.step, slot) for name, slot in call.outputs]
        for _, slot in call.outputs:
            makers.pop(slot, None)
    return values

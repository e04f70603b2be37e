"""Deviations of one run from another, slot by slot and step by step.

Every deviation is ``max |a - b|`` divided by the largest absolute reference value. A *local* deviation feeds each graph
with the reference's slots, so that the error of one graph does not reach the next graph.
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
    """The values of a whole trajectory.

    Attributes:
        values: inputs and outputs of graphs by name and step.
        image: the result.
    """

    values: Mapping[tuple[str, int], np.ndarray]
    image: np.ndarray


@dataclass(frozen=True)
class Deviation:
    """The relative difference of one value at one step.

    Attributes:
        value: name of the value.
        step: at which it was written.
        relative: the difference, relative to the largest reference value.
        tolerance: the largest difference that is allowed there. None before a verification has set it.
    """

    value: str
    step: int
    relative: float
    tolerance: float | None = None


def relative_difference(array: np.ndarray, reference: np.ndarray) -> float:
    """The largest absolute difference divided by the largest absolute reference value.

    Args:
        array: the values to compare.
        reference: the values to compare with, of the same shape.

    Returns:
        The quotient, infinite where a value of either array is not finite.
    """
    array, reference = array.astype(np.float64), reference.astype(np.float64)
    if not (np.isfinite(array).all() and np.isfinite(reference).all()):
        return float("inf")
    # The lower bound keeps a reference of zeros from dividing by zero.
    return float(np.abs(array - reference).max() / max(np.abs(reference).max(), 1e-12))


def record_run(session: Session, inputs: Inputs, seed: int) -> Recording:
    """Make a run and record the inputs and outputs of its graphs.

    Args:
        session: the session to run.
        inputs: noise and conditioning.
        seed: of noise that the sampler draws.

    Returns:
        The values and the image.
    """
    values = {(name, step): session.slot(slot) for name, step, slot in _iterate_values(session, inputs, seed)}
    return Recording(values, session.slot(session.program.image))


def local_deviations(session: Session, inputs: Inputs, seed: int, reference: Recording) -> Iterator[Deviation]:
    """Make a run in which every value is compared with the reference and then replaced by it.

    Values that the reference lacks, such as values between two segments of one step, are not replaced.

    Args:
        session: the session to run.
        inputs: noise and conditioning.
        seed: of noise that the sampler draws.
        reference: a recording of the same inputs.

    Yields:
        The deviation of every value that the reference has, in order of execution.
    """
    for name, step, slot in _iterate_values(session, inputs, seed):
        expected = reference.values.get((name, step))
        if expected is not None:
            yield Deviation(name, step, relative_difference(session.slot(slot), expected))
            session.write(slot, expected)


def _iterate_values(session: Session, inputs: Inputs, seed: int) -> Iterator[tuple[str, int, str]]:
    """Run the session. After each call, yield name, step and slot of every graph input or output that it wrote."""
    values = _values_of_calls(session.program)
    for index, _ in session.iterate(*inputs, seed=seed):
        yield from values[index]


def _values_of_calls(program: Program) -> list[list[tuple[str, int, str]]]:
    """For every call, the graph outputs or the inputs of later graphs that it writes: name, step and slot."""
    values: list[list[tuple[str, int, str]]] = [[] for _ in program.calls]
    writer_of_slot: dict[str, int] = {}
    for index, call in enumerate(program.calls):
        if not isinstance(call, Run):
            writer_of_slot[call.target] = index
            continue
        for name, slot in call.inputs:
            if name in program.graph_of_name[call.graph].inputs and slot in writer_of_slot:
                values[writer_of_slot[slot]].append((name, call.step, slot))
        values[index] = [(name, call.step, slot) for name, slot in call.outputs]
        for _, slot in call.outputs:
            writer_of_slot.pop(slot, None)
    return values

"""A machine for Programs over NumPy slots that trusts nothing: it checks every read and write against the rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.program import Combine, Graph, Program, Run, Sample, Term
from tests.lowering.semantics import SCALE, Moment, Values, nonlinear_step, piece_value

TOLERANCE = 1e-9


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation over the largest value (or 1); infinite where shapes differ or a number is missing."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return np.inf
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def run_graph(blocks: BlockGraph, graph: Graph, given: Values) -> Values:
    """Cut semantics: evaluate the writes, walking back as far as the reads.

    Fails unless exactly the graph's pieces are evaluated and exactly its inputs and reads are used.
    """
    known: Values = {}
    pieces: set[int] = set()
    used: set[str] = set()
    residual_ends = {f"{b.name}:residual": (b.features[0], b.residual_input) for b in blocks.blocks}
    added = {output: (name, entry) for name, (output, entry) in residual_ends.items() if name in graph.reads}

    def take(name: str) -> np.ndarray:
        used.add(name)
        return given[name]

    def value(name: str) -> np.ndarray:
        if name in given:
            return take(name)
        if name in added:
            return value(str(added[name][1])) + take(added[name][0])
        if name not in known:
            piece = blocks.giver[name]
            pieces.add(piece.index)
            known[name] = piece_value(blocks.values[name], {read: value(read) for read in piece.reads})
        return known[name]

    def written(name: str) -> np.ndarray:
        if name in residual_ends:
            output, entry = residual_ends[name]
            return value(output) - value(str(entry))
        return value(name)

    outputs = {name: written(name) for name in graph.writes}
    assert pieces == set(graph.pieces), graph.name
    assert used == {*graph.inputs, *graph.reads}, graph.name
    return outputs


def run_program(
    program: Program, blocks: BlockGraph, noise: np.ndarray, conditioning: Values, moments: Sequence[Moment]
) -> np.ndarray:
    """The image. Slots start as NaN; a Run must read what the rollout holds at its step and write what it computed."""
    sizes = program.contract.sizes(len(noise))
    slots = {spec.name: np.full(spec.resolve(sizes), np.nan) for spec in program.slots}
    slots[program.noise] = noise
    slots |= {slot: conditioning[name] for name, slot in program.conditioning}
    for call in program.calls:
        if isinstance(call, Run):
            run_call(program, blocks, call, slots, moments[call.step])
        elif isinstance(call, Combine):
            result = combined(call, slots)
            assert result.shape == slots[call.target].shape, call
            slots[call.target] = result
        else:
            assert isinstance(call, Sample)
            assert distance(slots[call.output], moments[call.step].output) < TOLERANCE, call
            slots[call.target] = nonlinear_step(call.step, slots[call.latent], slots[call.output])
    return slots[program.image]


def run_call(program: Program, blocks: BlockGraph, call: Run, slots: Values, moment: Moment) -> None:
    graph = program.graph_of_name[call.graph]
    given = {name: slots[slot] for name, slot in call.inputs}
    for name, array in given.items():
        meant = moment.values if program.layout == "segments" or name in graph.inputs else moment.backups
        assert distance(array, meant[name]) < TOLERANCE, f"step {call.step} reads another {name}"
    if "timestep" in graph.inputs:
        given["timestep"] = moment.values["timestep"]
        assert call.timestep == given["timestep"][0]
    outputs = run_graph(blocks, graph, given)
    written = [slot for _, slot in call.outputs]
    assert len({*written}) == len(written) and not {*written} & {slot for _, slot in call.inputs}
    for name, slot in call.outputs:
        meant = moment.stored if name in moment.stored else moment.values
        assert distance(outputs[name], meant[name]) < TOLERANCE, f"step {call.step} writes another {name}"
        assert outputs[name].shape == slots[slot].shape
        slots[slot] = outputs[name]


def combined(call: Combine, slots: Values) -> np.ndarray:
    assert call.target not in {term.slot for term in call.terms}
    total = sum((_term(term, slots) for term in call.terms), np.zeros(1))
    if not call.terms:
        total = np.zeros_like(slots[call.target][:: call.copies])
    return np.concatenate([total] * call.copies)


def _term(term: Term, slots: Values) -> np.ndarray:
    array = slots[term.slot]
    assert np.isfinite(array).all(), f"{term.slot} is read before it is written"
    half = len(array) // 2
    rows = {"all": array, "first": array[:half], "second": array[half:]}[term.half]
    return (term.constant + term.guided * SCALE) * (rows if term.channels is None else rows[:, : term.channels])

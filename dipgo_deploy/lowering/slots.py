"""Slots: interval colouring of values. Two values of one shape and dtype share a slot if their lifetimes do not meet.

1. A value lives from the call that writes it to the last call that reads it. Inputs live from the start. Conditioning
   and the image live to the end.
2. A call never writes a slot that it reads.
3. Greedy colouring in order of first write is optimal for intervals, so no assignment needs fewer slots of a shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dipgo_deploy.core.program import Call, Combine, Run
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.lowering.folding import reads_of, writes_of

__all__ = ["assign_slots"]


def assign_slots(
    calls: Sequence[Call], specs: Mapping[str, TensorSpec], inputs: Sequence[str], image: str
) -> tuple[tuple[TensorSpec, ...], tuple[Call, ...], dict[str, str]]:
    """Assign every value to a slot.

    Args:
        calls: the calls in order, over values.
        specs: shape and dtype of every value.
        inputs: the caller's values: the first is the noise, the others are conditioning.
        image: the value that holds the result.

    Returns:
        The slots, the calls over slots, and the slot of every value.
    """
    first, last = _lifetimes(calls, inputs, image)
    slots: list[TensorSpec] = []
    free_from: list[int] = []
    names: dict[str, str] = {}
    for value in sorted(first, key=lambda v: (first[v], inputs.index(v) if v in inputs else len(inputs))):
        spec = specs[value]
        fits = [i for i, slot in enumerate(slots) if _same(slot, spec) and free_from[i] < first[value]]
        if fits:
            index = fits[0]
        else:
            index = len(slots)
            slots.append(replace(spec, name=f"s{index}"))
            free_from.append(0)
        free_from[index] = last[value]
        names[value] = slots[index].name
    return tuple(slots), tuple(_renamed(call, names) for call in calls), names


def _lifetimes(calls: Sequence[Call], inputs: Sequence[str], image: str) -> tuple[dict[str, int], dict[str, int]]:
    first = {value: -1 for value in inputs}
    last = {value: len(calls) if value != inputs[0] else -1 for value in inputs}
    for index, call in enumerate(calls):
        for value in writes_of(call):
            first[value] = index
            last[value] = index
        for value in reads_of(call):
            last[value] = max(last[value], index)
    last[image] = len(calls)
    return first, last


def _same(slot: TensorSpec, spec: TensorSpec) -> bool:
    return slot.shape == spec.shape and slot.dtype == spec.dtype


def _renamed(call: Call, names: Mapping[str, str]) -> Call:
    if isinstance(call, Run):
        return replace(
            call,
            inputs=tuple((name, names[value]) for name, value in call.inputs),
            outputs=tuple((name, names[value]) for name, value in call.outputs),
        )
    if isinstance(call, Combine):
        terms = tuple(replace(term, slot=names[term.slot]) for term in call.terms)
        return replace(call, target=names[call.target], terms=terms)
    return replace(call, latent=names[call.latent], output=names[call.output], target=names[call.target])

"""Slots: lifetimes that meet never share one, and there are no more of them than must be."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from dipgo_deploy.core.program import Combine, Term
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.lowering.slots import assign_slots

SHAPES = (("batch", 2), ("rows", 2), ("rows", 3))
INPUTS = ("noise", "cond")


@st.composite
def straight_lines(draw: st.DrawFn) -> tuple[list[Combine], dict[str, TensorSpec]]:
    """Calls that write one value each, from any values written before."""
    specs = {name: TensorSpec(name, SHAPES[i], "float32") for i, name in enumerate(INPUTS)}
    calls = []
    for index in range(draw(st.integers(1, 14))):
        reads = draw(st.lists(st.sampled_from(sorted(specs)), min_size=1, max_size=3, unique=True))
        target = f"v{index}"
        dtype = draw(st.sampled_from(["float32", "float16"]))
        specs[target] = TensorSpec(target, draw(st.sampled_from(SHAPES)), dtype)
        calls.append(Combine(target, tuple(Term(read, 1.0) for read in reads), index))
    return calls, specs


def lifetimes(calls: list[Combine], image: str) -> dict[str, tuple[float, float]]:
    """First write and last read; a value that nobody reads lives at its write. Writes come after reads of a call."""
    life: dict[str, tuple[float, float]] = {"noise": (-1.0, -1.0), "cond": (-1.0, len(calls))}
    for index, call in enumerate(calls):
        for term in call.terms:
            first, last = life[term.slot]
            life[term.slot] = (first, max(last, float(index)))
        life[call.target] = (float(index), float(index))
    life[image] = (life[image][0], float(len(calls)))
    return life


@settings(max_examples=100, deadline=None)
@given(straight_lines())
def test_values_that_share_a_slot_never_live_together(line: tuple[list[Combine], dict[str, TensorSpec]]) -> None:
    calls, specs = line
    image = calls[-1].target
    slots, assigned, names = assign_slots(calls, specs, INPUTS, image)
    life = lifetimes(calls, image)
    spec_of_slot = {slot.name: slot for slot in slots}
    for value, slot in names.items():
        assert (spec_of_slot[slot].shape, spec_of_slot[slot].dtype) == (specs[value].shape, specs[value].dtype)
        for other, its_slot in names.items():
            if value < other and slot == its_slot:
                (a, b), (c, d) = life[value], life[other]
                assert b < c or d < a, f"{value} and {other} in {slot}"
    for before, after in zip(calls, assigned, strict=True):
        assert isinstance(after, Combine)
        assert after.target == names[before.target] and after.target not in {term.slot for term in after.terms}
        assert [term.slot for term in after.terms] == [names[term.slot] for term in before.terms]


@settings(max_examples=100, deadline=None)
@given(straight_lines())
def test_no_shape_has_more_slots_than_values_alive_at_once(line: tuple[list[Combine], dict[str, TensorSpec]]) -> None:
    calls, specs = line
    image = calls[-1].target
    slots, _, names = assign_slots(calls, specs, INPUTS, image)
    life = lifetimes(calls, image)
    kinds = Counter((slot.shape, slot.dtype) for slot in slots)
    for kind, count in kinds.items():
        values = [v for v in names if (specs[v].shape, specs[v].dtype) == kind]
        crowd = max(sum(life[v][0] <= t <= life[v][1] for v in values) for t in range(-1, len(calls) + 1))
        assert count == crowd

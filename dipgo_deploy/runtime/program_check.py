"""Check a program before its calls are bound: every slot is declared once, and no graph overwrites its own inputs."""

from __future__ import annotations

from collections import Counter

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Call, Combine, Program, Run

__all__ = ["check_slots"]


def check_slots(program: Program) -> None:
    """Check the slots that a program and its calls name.

    Raises InputError for a slot that is not declared or declared twice, for a graph call that writes a slot which it
    reads, and for a graph call that writes two outputs to one slot.
    """
    declared = Counter(slot.name for slot in program.slots)
    for name, count in declared.items():
        if count > 1:
            raise InputError(f"the program declares slot {name} {count} times: re-export")
    own_slots = (program.noise, program.image, *(slot for _, slot in program.conditioning))
    _check_declared("the program", own_slots, declared)
    for index, call in enumerate(program.calls):
        reads, writes = _slots_of(call)
        _check_declared(f"call {index}", (*reads, *writes), declared)
        # A combination may write to a slot that it reads: it accumulates first. A graph gives no such promise.
        if isinstance(call, Run):
            _check_run(f"call {index}", reads, writes)


def _slots_of(call: Call) -> tuple[list[str], list[str]]:
    """The slots that a call reads, and the slots that it writes."""
    if isinstance(call, Run):
        return [slot for _, slot in call.inputs], [slot for _, slot in call.outputs]
    if isinstance(call, Combine):
        return [term.slot for term in call.terms], [call.target]
    return [call.latent, call.output], [call.target]


def _check_declared(where: str, names: tuple[str, ...], declared: Counter[str]) -> None:
    for name in names:
        if name not in declared:
            raise InputError(f"{where} names slot {name!r}, which the program does not declare: re-export")


def _check_run(where: str, reads: list[str], writes: list[str]) -> None:
    if shared := set(reads) & set(writes):
        raise InputError(f"{where} writes slot {min(shared)} while it reads it: re-export")
    if len(set(writes)) < len(writes):
        raise InputError(f"{where} writes two outputs to one slot: re-export")

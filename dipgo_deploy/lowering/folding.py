"""Folding: consecutive combinations become one combination if no network call lies between them.

1. In each run of consecutive combinations, a value that no later call reads is expanded in its readers.
2. A value that a later call reads is kept, and its readers within the run read the value itself.
3. A combination without readers is removed (`drop_unused`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dipgo_deploy.core.program import Call, Combine, Run, Term
from dipgo_deploy.lowering.emission import merge_terms

__all__ = ["drop_unused", "fold", "reads_of", "writes_of"]


def reads_of(call: Call) -> tuple[str, ...]:
    """Names that a call reads."""
    if isinstance(call, Run):
        return tuple(value for _, value in call.inputs)
    if isinstance(call, Combine):
        return tuple(term.slot for term in call.terms)
    return (call.latent, call.output)


def writes_of(call: Call) -> tuple[str, ...]:
    """Names that a call writes."""
    return tuple(value for _, value in call.outputs) if isinstance(call, Run) else (call.target,)


def fold(calls: Sequence[Call], image: str) -> list[Call]:
    """Fold every chain of combinations. Coefficients are multiplied in float64.

    Args:
        calls: the calls in order.
        image: name of the last value.

    Returns:
        Fewer calls that give the same image.
    """
    folded: list[Call] = []
    last = {value: index for index, call in enumerate(calls) for value in reads_of(call)} | {image: len(calls)}
    start = 0
    while start < len(calls):
        end = start
        while end < len(calls) and isinstance(calls[end], Combine):
            end += 1
        if end == start:
            folded.append(calls[start])
            start += 1
            continue
        run = [call for call in calls[start:end] if isinstance(call, Combine)]
        folded += _fold_run(run, {call.target for call in run if last.get(call.target, -1) >= end})
        start = end
    return folded


def _fold_run(run: Iterable[Combine], later: set[str]) -> list[Call]:
    inner: dict[str, Combine] = {}
    kept: list[Call] = []
    for call in run:
        terms: list[Term] = []
        for term in call.terms:
            source = inner.get(term.slot)
            terms += [term] if source is None else _expanded(term, source)
        call = replace(call, terms=tuple(merge_terms(terms)))
        if call.target in later or call.copies != 1:
            kept.append(call)
        else:
            inner[call.target] = call
    return kept


def _expanded(term: Term, source: Combine) -> list[Term]:
    """``term`` of a combination's result, in terms of what that combination reads."""
    # Only network outputs have halves, guidance or extra channels, and no combination writes those.
    assert term.half == "all" and term.guided == 0.0 and term.channels is None, term
    factor = term.constant
    return [replace(part, constant=part.constant * factor, guided=part.guided * factor) for part in source.terms]


def drop_unused(calls: Sequence[Call], results: Iterable[str]) -> list[Call]:
    """Remove combinations without readers.

    Args:
        calls: the calls in order.
        results: names of the values that the caller reads.

    Returns:
        The remaining calls in order.
    """
    needed, kept = {*results}, []
    for call in reversed(calls):
        if isinstance(call, Combine) and call.target not in needed:
            continue
        kept.append(call)
        needed.update(reads_of(call))
    return kept[::-1]

"""SmoothCache (arXiv 2411.10510, package dit-smoothcache 0.1.1): one list of 0 and 1 per type of layer.

A document maps a layer's type (``attn1``) to one number per step, 1 computed and 0 reused. ``attn1-3`` names the layer
of that type in block 3 alone, and overrides the type. Layers without an entry are computed at every step. The original
DiT calls its layers ``attn`` and ``mlp``. These names are accepted where the model has ``attn1`` and ``ff`` or ``ffn``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import check_document
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.candidate import schedule_from_sets

__all__ = ["read", "write"]

Lists = dict[str, list[Literal[0, 1]]]

_ALIASES = {"attn": ("attn1",), "mlp": ("ff", "ffn"), "cross_attn": ("attn2",)}

_INDEXED = re.compile(r"(.+)-(\d+)")


def read(document: Mapping[str, Any], graph: BlockGraph, contract: Contract) -> Schedule:
    """The schedule of these lists. Raises InputError for an unknown type or a list of another length."""
    lists = _in_our_words(check_document(document, Lists, "smoothcache"), graph.block_names[:-1])
    steps = contract.sampler.calls
    for key, bits in lists.items():
        if len(bits) != steps:
            raise InputError(
                f"smoothcache: {key} has {len(bits)} entries, the sampler makes {steps} network calls: give one each"
            )
    always = [1] * steps
    rows = {name: lists.get(_key(name), lists.get(_type(name), always)) for name in graph.block_names[:-1]}
    computed = [frozenset([PREDICTION, *(name for name, bits in rows.items() if bits[step])]) for step in range(steps)]
    return schedule_from_sets(graph, contract, "output", computed, {"method": "smoothcache"})


def _in_our_words(lists: Mapping[str, Sequence[int]], names: Sequence[str]) -> dict[str, Sequence[int]]:
    """``lists`` with the model's own types of layers as keys."""
    types = {_type(name) for name in names}
    known = types | {_key(name) for name in names}
    renamed: dict[str, Sequence[int]] = {}
    for key, bits in lists.items():
        match = _INDEXED.fullmatch(key)
        kind, suffix = (match[1], f"-{match[2]}") if match else (key, "")
        chosen = next((alias + suffix for alias in (kind, *_ALIASES.get(kind, ())) if alias in types), key)
        if chosen not in known:
            raise InputError(
                f"smoothcache: the model has no layer {key!r}, its types are {', '.join(sorted(types))}: fix the name"
            )
        if chosen in renamed:
            raise InputError(f"smoothcache: two lists are for {chosen}: leave one out")
        renamed[chosen] = bits
    return renamed


def _parts(name: str) -> list[str]:
    return name.split(".")


def _type(name: str) -> str:
    """The last word of a block's path that is not a number: ``attn1`` of ``transformer_blocks.3.attn1``."""
    return next(part for part in reversed(_parts(name)) if not part.isdigit())


def _key(name: str) -> str:
    """Type and the number before it: ``attn1-3`` of ``transformer_blocks.3.attn1``."""
    before = [part for part in _parts(name)[:-1] if part.isdigit()]
    return f"{_type(name)}-{before[-1] if before else ''}"


def write(schedule: Schedule) -> dict[str, Any]:
    """One list per type where its layers agree, otherwise one per layer.

    Raises InputError, naming step and block, where the prediction is reused or two layers of one number differ.
    """
    for step in range(schedule.steps):
        if not schedule.is_computed(step, PREDICTION):
            raise InputError(
                f"step {step} reuses {PREDICTION}, but smoothcache computes it at every step: write the schedule in "
                "another format"
            )
    rows = {name: [int(row[i]) for row in schedule.compute] for i, name in enumerate(schedule.blocks[:-1])}
    return dict(entry for kind in dict.fromkeys(map(_type, rows)) for entry in _lists(kind, rows))


def _lists(kind: str, rows: Mapping[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
    """The entries of one type."""
    own = {name: row for name, row in rows.items() if _type(name) == kind}
    if len(set(map(tuple, own.values()))) == 1:
        yield kind, next(iter(own.values()))
        return
    written: dict[str, list[int]] = {}
    for name, row in own.items():
        other = written.setdefault(_key(name), row)
        if other != row:
            step = next(i for i, (a, b) in enumerate(zip(other, row, strict=True)) if a != b)
            raise InputError(
                f"step {step} treats {name} and another layer that smoothcache calls {_key(name)} differently: write "
                "the schedule in another format"
            )
    yield from written.items()

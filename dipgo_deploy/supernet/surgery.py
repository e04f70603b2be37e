"""The surgery: for the time of a context, a function of ours stands between a model and each of its blocks.

The gate sees the block's name, its own forward and the arguments, and returns the feature: ``forward(*args, **kwargs)``
for a computed block, anything else for a reused one. On exit state dict, forwards and hooks are as before; a block that
is not called while gated costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError

__all__ = ["Gate", "execution_order", "gated", "match_blocks"]

Gate = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""``gate(block, forward, args, kwargs) -> feature``."""


@contextmanager
def gated(module: nn.Module, blocks: Sequence[str], gate: Gate) -> Iterator[nn.Module]:
    """Let ``gate`` stand before each of ``blocks`` (dotted paths) of ``module`` inside the context."""
    targets = [(name, module.get_submodule(name)) for name in blocks]
    saved = [(block, block.__dict__.get("forward")) for _, block in targets]
    try:
        for name, block in targets:
            block.forward = partial(_call_gate, gate, name, block.forward)
        yield module
    finally:
        for block, own in saved:
            block.__dict__.pop("forward", None)
            if own is not None:
                block.forward = own


def _call_gate(gate: Gate, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return gate(name, forward, args, kwargs)


def match_blocks(module: nn.Module, patterns: Sequence[str], strict: bool = True) -> list[str]:
    """Dotted paths of the submodules that match any of ``patterns``; ``*`` stands within one path component.

    Raises UsageError for a pattern that matches nothing (if ``strict``) and for a block inside another block.
    """
    names = [name for name, _ in module.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        matches = [name for name in names if _matches(name, pattern)]
        if strict and not matches:
            raise UsageError(
                f"block pattern {pattern!r} matches no submodule of {type(module).__name__}: its children are "
                f"{', '.join(name for name, _ in module.named_children())}"
            )
        found += [name for name in matches if name not in found]
    for name in found:
        outer = [other for other in found if name.startswith(other + ".")]
        if outer:
            raise UsageError(f"block {name} lies inside block {outer[0]}: choose patterns that do not nest")
    return found


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(fnmatchcase(p, w) for p, w in zip(parts, wanted, strict=True))


@torch.no_grad()
def execution_order(module: nn.Module, blocks: Sequence[str], forward: Callable[[], Any]) -> list[str]:
    """The ``blocks`` in the order in which ``forward()`` calls them.

    Raises InputError for a block that runs twice in one forward: its feature would not be one thing. Blocks that the
    forward never calls are left out.
    """
    order: list[str] = []

    def note(name: str, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in order:
            raise InputError(f"block {name} runs more than once in a forward: choose blocks that run once")
        order.append(name)
        return block(*args, **kwargs)

    with gated(module, blocks, note):
        forward()
    return order

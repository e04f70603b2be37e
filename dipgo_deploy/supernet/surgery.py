"""The surgery: inside a context, a gate stands between a model and each of its blocks.

The gate gets the block's name, its own forward and the arguments, and returns the feature. For a computed block that is
``forward(*args, **kwargs)``, for a reused block anything else. On exit state dict, forwards and hooks are as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError

__all__ = ["Gate", "execution_order", "gated", "lock_of", "match_blocks"]

Gate = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""``gate(block, forward, args, kwargs) -> feature``."""


_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def lock_of(module: nn.Module) -> Any:
    """A reentrant lock for runs of a live module. Two threads must not put gates into a module at once."""
    return _LOCKS.setdefault(module, RLock())


@contextmanager
def gated(module: nn.Module, blocks: Sequence[str], gate: Gate) -> Iterator[nn.Module]:
    """Route every call of the ``blocks`` (dotted paths) of ``module`` through ``gate`` inside the context."""
    targets = [(name, module.get_submodule(name)) for name in blocks]
    saved = [(block, block.__dict__.get("forward")) for _, block in targets]
    try:
        for name, block in targets:
            block.forward = partial(_call_gate, gate, name, block.forward)
        yield module
    finally:
        for block, forward in saved:
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def _call_gate(gate: Gate, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return gate(name, forward, args, kwargs)


def match_blocks(module: nn.Module, patterns: Sequence[str], strict: bool = True) -> list[str]:
    """Find the submodules that match any pattern.

    Args:
        module: the network.
        patterns: dotted paths, where ``*`` matches within one path component.
        strict: refuse a pattern without a match.

    Returns:
        Dotted paths.

    Raises:
        UsageError: a pattern matches nothing, or a block lies inside another block.
    """
    names = [name for name, _ in module.named_modules() if name]
    blocks: list[str] = []
    for pattern in patterns:
        matches = [name for name in names if _matches(name, pattern)]
        if strict and not matches:
            raise UsageError(
                f"block pattern {pattern!r} matches no submodule of {type(module).__name__}: its children are "
                f"{', '.join(name for name, _ in module.named_children())}"
            )
        blocks += [name for name in matches if name not in blocks]
    for name in blocks:
        outer = [other for other in blocks if name.startswith(other + ".")]
        if outer:
            raise UsageError(f"block {name} lies inside block {outer[0]}: choose patterns that do not nest")
    return blocks


def _matches(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


@torch.no_grad()
def execution_order(module: nn.Module, blocks: Sequence[str], forward: Callable[[], Any]) -> list[str]:
    """Find the order in which a forward calls its blocks.

    Args:
        module: the network.
        blocks: dotted paths.
        forward: runs the network once.

    Returns:
        The blocks in that order, without those that are never called.

    Raises:
        InputError: a block runs twice in one forward, so it has more than one feature.
    """
    order: list[str] = []

    def record(name: str, block: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in order:
            raise InputError(f"block {name} runs more than once in a forward: choose blocks that run once")
        order.append(name)
        return block(*args, **kwargs)

    with gated(module, blocks, record):
        forward()
    return order

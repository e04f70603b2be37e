"""Search: which blocks each step computes, and which it reuses.

This package is also the function: ``dipgo_deploy.search(model, contract, options)`` is ``search`` of run.py. The class
of the package's module is changed for that. Python binds ``dipgo_deploy.search`` to the package when any of its modules
is imported, so a function of that name in ``dipgo_deploy`` would depend on the order of imports.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.method_options import (
    BestRandomOptions,
    DeepCacheOptions,
    DpcacheOptions,
    EvolutionOptions,
    ForaOptions,
    RandomOptions,
    UniformOptions,
)
from dipgo_deploy.search.options import METHODS, RULES, TOLERANCE, SearchOptions, method_options

if TYPE_CHECKING:
    from dipgo_deploy.search.problem import schedule_by_rule
    from dipgo_deploy.search.random_schedules import random_schedule
    from dipgo_deploy.search.run import search

__all__ = [
    "METHODS",
    "RULES",
    "TOLERANCE",
    "BestRandomOptions",
    "DeepCacheOptions",
    "DipgoOptions",
    "DpcacheOptions",
    "EvolutionOptions",
    "ForaOptions",
    "RandomOptions",
    "SearchOptions",
    "UniformOptions",
    "method_options",
    "random_schedule",
    "schedule_by_rule",
    "search",
]

_LAZY = {
    "random_schedule": "dipgo_deploy.search.random_schedules",
    "schedule_by_rule": "dipgo_deploy.search.problem",
    "search": "dipgo_deploy.search.run",
}
"""Names whose modules need PyTorch: they are imported on first use, so that options are checked without."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'dipgo_deploy.search' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


class _CallablePackage(ModuleType):
    """A package that can be called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Search a schedule, as ``search`` does."""
        return __getattr__("search")(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage

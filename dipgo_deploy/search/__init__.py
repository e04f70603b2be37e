"""Search: which blocks each step computes, and which it reuses.

This package is also a verb: ``dipgo_deploy.search(model, contract, options)`` calls ``search``, in any order of
imports (core/callable_package.py).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dipgo_deploy.core.callable_package import make_callable
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.fit.options import FitOptions
from dipgo_deploy.search.learned.options import LearnedOptions
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
    from dipgo_deploy.core.blocks import BlockGraph
    from dipgo_deploy.core.contract import Contract
    from dipgo_deploy.core.progress import Work
    from dipgo_deploy.core.schedule import Schedule
    from dipgo_deploy.models import LoadedModel
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
    "FitOptions",
    "ForaOptions",
    "LearnedOptions",
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
"""Names whose modules need PyTorch. They are imported on first use, so that options are checked without PyTorch."""


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'dipgo_deploy.search' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def _search(
    model: LoadedModel,
    contract: Contract,
    options: SearchOptions = SearchOptions(),
    *,
    blocks: BlockGraph | None = None,
) -> Work[Schedule]:
    """Search a reuse schedule: see ``dipgo_deploy.search.search``."""
    work: Work[Schedule] = __getattr__("search")(model, contract, options, blocks=blocks)
    return work


make_callable(__name__, _search)

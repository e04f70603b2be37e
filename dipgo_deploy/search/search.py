"""The one entry point: a method's name and a ratio in, a checked schedule out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.latency import check_table
from dipgo_deploy.core.precision import is_half
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.candidate import Candidate, schedule_from_sets
from dipgo_deploy.search.options import RULES, SearchOptions
from dipgo_deploy.search.random_schedule import random_search
from dipgo_deploy.search.rules import deepcache, fora, uniform

__all__ = ["check_model", "origin_of", "search_schedule"]

_RULES: dict[str, Callable[[BlockGraph, int, SearchOptions], Candidate]] = {
    "uniform": uniform,
    "deepcache": deepcache,
    "fora": fora,
    "random": random_search,
}


def search_schedule(graph: BlockGraph, contract: Contract, options: SearchOptions) -> Schedule:
    """The schedule that ``options.method`` gives for this model and sampler, as near to the asked ratio as it can come.

    ``origin`` records ``method``, ``ratio`` (asked), ``reached``, ``seed`` and the method's own knobs; a ratio that the
    method cannot reach is no error. Raises InputError where graph and contract describe different models or no block
    has a residual to reuse, UsageError for a knob that does not fit this model or a method that runs it.
    """
    if options.method not in _RULES:
        raise UsageError(f"method {options.method} needs the model: give it one, or choose one of {', '.join(RULES)}")
    check_model(graph, contract, options)
    found = _RULES[options.method](graph, contract.sampler.calls, options)
    return schedule_from_sets(graph, contract, options.kind, found.computed, origin_of(found, options))


def origin_of(found: Candidate, options: SearchOptions) -> dict[str, str]:
    """How a schedule was made: method, asked and reached ratio, seed and the method's own knobs."""
    return {
        "method": options.method,
        "ratio": f"{options.ratio:g}",
        "reached": f"{found.ratio:.4f}",
        "seed": str(options.seed),
        **({"cost": options.cost.target} if options.cost else {}),
        **found.knobs,
    }


def check_model(graph: BlockGraph, contract: Contract, options: SearchOptions) -> None:
    """Raise InputError where graph and contract describe different models, or no block has a residual to reuse."""
    for name in ("model_class", "model_digest"):
        ours, theirs = getattr(graph, name), getattr(contract, name)
        if ours != theirs:
            raise InputError(
                f"the blocks were traced from {name} {ours[:40]}, the contract names {theirs[:40]}: trace that model"
            )
    if options.cost is not None:
        # Graphs in half precision that were converted from this model are priced for it.
        converted = graph.dtype == "float32" and is_half(options.cost.dtype)
        check_table(options.cost, replace(graph, dtype=options.cost.dtype) if converted else graph)
    if options.kind == "residual" and all(block.residual_input is None for block in graph.blocks):
        raise InputError(
            f"no block of {graph.model_class} at granularity {graph.granularity} has one input of its output's shape, "
            "so there is no residual to reuse: choose kind output"
        )

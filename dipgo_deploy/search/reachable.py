"""Which ratios a search can reach, and what is said if the requested ratio is not one of them."""

from __future__ import annotations

from dataclasses import replace

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.search.cost import Pricer
from dipgo_deploy.search.options import METHODS, TOLERANCE, SearchOptions

__all__ = ["highest_ratio", "out_of_reach", "ratio_of", "unmet_ratio"]

_ALMOST_ALL = 1 - 1e-9
_DETERMINISTIC = ("uniform", "deepcache", "fora")
"""Rules that give their highest ratio if almost everything is to be pruned."""


def highest_ratio(graph: BlockGraph, steps: int, options: SearchOptions) -> float:
    """The largest ratio that a method reaches. The smallest ratio is 0 for every method.

    Args:
        graph: blocks of the model.
        steps: network calls of the full run.
        options: method, kind of reuse and latency table.

    Returns:
        The pruned share of MACs, or of time with a latency table. For a method that is no rule, that of the schedule
        which computes only the first step.
    """
    if options.method in _DETERMINISTIC:
        candidate = METHODS[options.method].load()(graph, steps, replace(options, ratio=_ALMOST_ALL))
        return float(candidate.ratio)
    first = frozenset(graph.block_names)
    return Pricer(graph, options.kind, options.latency).ratio([first, *[frozenset[str]()] * (steps - 1)])


def ratio_of(schedule: Schedule, graph: BlockGraph, options: SearchOptions) -> float:
    """The ratio that a schedule reaches, in the measure of the search.

    Args:
        schedule: the result of the search.
        graph: blocks of the model.
        options: kind of reuse and latency table.

    Returns:
        The pruned share of MACs, or of time with a latency table.
    """
    return Pricer(graph, options.kind, options.latency).ratio(schedule.computed)


def out_of_reach(graph: BlockGraph, steps: int, options: SearchOptions) -> str:
    """A warning before a search whose ratio no schedule reaches, so that nobody waits for nothing.

    Args:
        graph: blocks of the model.
        steps: network calls of the full run.
        options: options of the search.

    Returns:
        One line, "" if the ratio can be reached or if the options fix the computed steps.
    """
    highest = highest_ratio(graph, steps, options)
    if _is_fixed(options) or options.ratio <= highest + TOLERANCE:
        return ""
    return (
        f"warning: a ratio of {options.ratio:g} is requested, but {options.method} reaches 0 to {highest:.4f} with "
        f"{steps} steps"
    )


def unmet_ratio(schedule: Schedule, graph: BlockGraph, options: SearchOptions) -> str:
    """A warning after a search that did not reach its ratio.

    Args:
        schedule: the result of the search.
        graph: blocks of the model.
        options: options of the search.

    Returns:
        One line with the reachable range, "" if the ratio is reached or if the options fix the computed steps.
    """
    reached = ratio_of(schedule, graph, options)
    if _is_fixed(options) or abs(reached - options.ratio) <= TOLERANCE:
        return ""
    limit, highest = options.max_graphs, highest_ratio(graph, schedule.steps, options)
    hint = "take more steps or a finer granularity" if limit is None else f"allow more than {limit} graphs"
    return (
        f"warning: the ratio is {reached:.4f}, but {options.ratio:g} was requested: {hint}; {options.method} reaches "
        f"0 to {highest:.4f} with {schedule.steps} steps, and not every ratio in between"
    )


def _is_fixed(options: SearchOptions) -> bool:
    return options.settings is not None and options.settings.decides_ratio

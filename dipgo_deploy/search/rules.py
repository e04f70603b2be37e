"""Schedules by rule: whole steps (uniform), a shallow branch (DeepCache) or only the tail (FORA) between full steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.candidate import Candidate, ComputeSets
from dipgo_deploy.search.cost import Pricer
from dipgo_deploy.search.method_options import DeepCacheOptions, ForaOptions, UniformOptions
from dipgo_deploy.search.options import TOLERANCE, SearchOptions

__all__ = ["deepcache", "fora", "uniform"]


def uniform(graph: BlockGraph, steps: int, options: SearchOptions) -> Candidate:
    """Compute everything at evenly spread steps and hold the prediction in between.

    Under a sampler that is linear in the last output this is the same sampler with fewer steps.

    Args:
        graph: blocks of the model.
        steps: network calls of the full run.
        options: ratio, and UniformOptions.

    Returns:
        The candidate whose ratio is nearest, or that of ``interval`` or ``calls``.

    Raises:
        UsageError: more ``calls`` than the sampler makes.
    """
    price, settings = _full_steps(graph, steps, options, frozenset()), options.settings_as(UniformOptions)
    if settings.interval:
        return price(_every(settings.interval, steps), str(settings.interval))
    if settings.calls:
        if settings.calls > steps:
            raise UsageError(f"calls must be at most {steps}, the network calls of the full run, got {settings.calls}")
        return price(_spread(settings.calls, steps), "even")
    return _nearest([price(full, "even") for full in _spreads(steps)], options.ratio)


def fora(graph: BlockGraph, steps: int, options: SearchOptions) -> Candidate:
    """Compute everything at every N-th step, and only stem and tail in between (FORA, arXiv 2407.01425).

    If no N comes near the ratio, evenly spread steps are computed instead. Their gaps differ by one, and
    ``interval`` is recorded as ``mixed``.

    Args:
        graph: blocks of the model.
        steps: network calls of the full run.
        options: ratio, and ForaOptions.

    Returns:
        The candidate whose ratio is nearest, or that of ``interval``.
    """
    price = _full_steps(graph, steps, options, frozenset([PREDICTION]))
    interval = options.settings_as(ForaOptions).interval
    intervals = [interval] if interval else list(_intervals(steps))
    nearest = _nearest([price(_every(n, steps), str(n)) for n in intervals], options.ratio)
    if interval or abs(nearest.ratio - options.ratio) <= TOLERANCE:
        return nearest
    return _nearest([nearest, *(price(full, "mixed") for full in _spreads(steps))], options.ratio)


def deepcache(graph: BlockGraph, steps: int, options: SearchOptions) -> Candidate:
    """Compute everything at every N-th step. In between, d blocks at each end of the model and the tail.

    DeepCache (arXiv 2312.00858) describes a U-Net's skip branch. In execution order that is the first and last d
    blocks. On a chain of blocks a middle range is reused. Of the pairs (N, d) that reach the ratio the smallest N is
    taken, because its features are the youngest.

    Args:
        graph: blocks of the model.
        steps: network calls of the full run.
        options: ratio, and DeepCacheOptions.

    Returns:
        The candidate that reaches the ratio with the smallest N, otherwise the nearest.

    Raises:
        UsageError: a depth that leaves no block in the middle.
    """
    names, settings = graph.block_names[:-1], options.settings_as(DeepCacheOptions)
    deepest = (len(names) - 1) // 2
    if (settings.depth or 1) > deepest:
        raise UsageError(
            f"depth {settings.depth or 1} leaves none of {len(names)} blocks in the middle: "
            + (f"give at most {deepest}" if deepest else "trace at a finer granularity")
        )
    pricer, candidates = Pricer(graph, options.kind, options.latency), []
    for interval in [settings.interval] if settings.interval else _intervals(steps):
        for depth in [settings.depth] if settings.depth else range(1, deepest + 1):
            shallow = frozenset((*names[:depth], *names[-depth:], PREDICTION))
            computed = _alternate(graph, steps, _every(interval, steps), shallow)
            knobs = {"interval": str(interval), "depth": str(depth)}
            candidates.append(Candidate(computed, pricer.ratio(computed), knobs))
    return _youngest(candidates, options.ratio)


def _full_steps(
    graph: BlockGraph, steps: int, options: SearchOptions, between: frozenset[str]
) -> Callable[[Sequence[int], str], Candidate]:
    pricer = Pricer(graph, options.kind, options.latency)

    def price(full: Sequence[int], spacing: str) -> Candidate:
        computed = _alternate(graph, steps, full, between)
        knobs = {"interval": spacing, "computed_steps": str(len(full))}
        return Candidate(computed, pricer.ratio(computed), knobs)

    return price


def _every(interval: int, steps: int) -> range:
    return range(0, steps, interval)


def _spread(count: int, steps: int) -> list[int]:
    """``count`` of ``steps`` steps, as evenly spread as integers allow, step 0 first."""
    return [i * steps // count for i in range(count)]


def _spreads(steps: int) -> Iterator[list[int]]:
    """The result of ``_spread`` for every number of computed steps."""
    return (_spread(count, steps) for count in range(1, steps + 1))


def _alternate(graph: BlockGraph, steps: int, full: Sequence[int], between: frozenset[str]) -> ComputeSets:
    everything, at = frozenset(graph.block_names), frozenset(full)
    return [everything if step in at else between for step in range(steps)]


def _intervals(steps: int) -> Iterator[int]:
    """The smallest interval for every number of full steps that intervals can give."""
    seen = set()
    for interval in range(1, steps + 1):
        count = -(-steps // interval)
        if count not in seen:
            seen.add(count)
            yield interval


def _nearest(candidates: list[Candidate], ratio: float) -> Candidate:
    return min(candidates, key=lambda candidate: abs(candidate.ratio - ratio))


def _youngest(candidates: list[Candidate], ratio: float) -> Candidate:
    met = [candidate for candidate in candidates if abs(candidate.ratio - ratio) <= TOLERANCE]
    smallest = min((int(candidate.knobs["interval"]) for candidate in met), default=0)
    return _nearest([c for c in met if int(c.knobs["interval"]) == smallest] or candidates, ratio)

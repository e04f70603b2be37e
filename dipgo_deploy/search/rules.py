"""Schedules by rule: whole steps (uniform), a shallow branch (DeepCache) or only the tail (FORA) between full steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search.candidate import Candidate, ComputeSets
from dipgo_deploy.search.options import TOLERANCE, SearchOptions
from dipgo_deploy.search.pricing import Pricer

__all__ = ["deepcache", "fora", "uniform"]


def uniform(graph: BlockGraph, steps: int, options: SearchOptions) -> Candidate:
    """Everything is computed at evenly spread steps, nothing in between: the prediction is held.

    Under a sampler that is linear in the last output this is the same sampler with fewer steps.
    """
    price = _full_steps(graph, steps, options, frozenset())
    if options.interval:
        return price(_every(options.interval, steps), str(options.interval))
    return _nearest([price(full, "even") for full in _spreads(steps)], options.ratio)


def fora(graph: BlockGraph, steps: int, options: SearchOptions) -> Candidate:
    """Everything is computed at every N-th step, in between only stem and tail: every block's feature is reused.

    FORA (arXiv 2407.01425). Where no N comes near the ratio, as many evenly spread steps as come nearest are computed:
    their gaps then differ by one, and ``interval`` is recorded as ``mixed``.
    """
    price = _full_steps(graph, steps, options, frozenset([PREDICTION]))
    asked = [options.interval] if options.interval else list(_intervals(steps))
    found = _nearest([price(_every(n, steps), str(n)) for n in asked], options.ratio)
    if options.interval or abs(found.ratio - options.ratio) <= TOLERANCE:
        return found
    return _nearest([found, *(price(full, "mixed") for full in _spreads(steps))], options.ratio)


def deepcache(graph: BlockGraph, steps: int, options: SearchOptions) -> Candidate:
    """Every N-th step is full; in between the middle blocks are reused, d blocks at each end and the tail computed.

    DeepCache (arXiv 2312.00858) names a U-Net's skip branch; in execution order that is its first and last d blocks.
    On a chain of blocks it reuses a middle range. Of the pairs (N, d) that meet the ratio the one with the smallest N
    is taken (its features are the youngest), otherwise the nearest. Raises UsageError for a depth that leaves no block
    in the middle.
    """
    names = graph.block_names[:-1]
    deepest = (len(names) - 1) // 2
    if (options.depth or 1) > deepest:
        raise UsageError(
            f"depth {options.depth or 1} leaves none of {len(names)} blocks in the middle: "
            + (f"give at most {deepest}" if deepest else "trace at a finer granularity")
        )
    pricer, found = Pricer(graph, options.kind, options.cost), []
    for interval in [options.interval] if options.interval else _intervals(steps):
        for depth in [options.depth] if options.depth else range(1, deepest + 1):
            shallow = frozenset((*names[:depth], *names[-depth:], PREDICTION))
            computed = _alternate(graph, steps, _every(interval, steps), shallow)
            knobs = {"interval": str(interval), "depth": str(depth)}
            found.append(Candidate(computed, pricer.ratio(computed), knobs))
    return _youngest(found, options.ratio)


def _full_steps(
    graph: BlockGraph, steps: int, options: SearchOptions, between: frozenset[str]
) -> Callable[[Sequence[int], str], Candidate]:
    pricer = Pricer(graph, options.kind, options.cost)

    def price(full: Sequence[int], spacing: str) -> Candidate:
        computed = _alternate(graph, steps, full, between)
        knobs = {"interval": spacing, "computed_steps": str(len(full))}
        return Candidate(computed, pricer.ratio(computed), knobs)

    return price


def _every(interval: int, steps: int) -> range:
    return range(0, steps, interval)


def _spreads(steps: int) -> Iterator[list[int]]:
    """For every number of computed steps, that many as evenly spread as integers allow, step 0 first."""
    return ([i * steps // count for i in range(count)] for count in range(1, steps + 1))


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

"""Liveness: which pieces of the network run at each step of a schedule, and which features are kept for later steps.

1. Go backwards over the steps, like a register allocator. An earlier step must write every feature that a later step
   reads.
2. The demands of a step are its prediction, if computed, and the features that later steps read.
3. Walk from the demands towards the inputs. A computed block is walked through. A reused block ends the walk at its
   stored feature (output kind), or the walk resumes at its input (residual kind). A piece that is not reached does not
   run, so the dead blocks of DiP-GO's post-processing need no separate rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dipgo_deploy.core.blocks import PREDICTION, ZERO_MACS, BlockGraph, Kind, Macs
from dipgo_deploy.core.schedule import Schedule

__all__ = [
    "Reach",
    "StepPlan",
    "block_of_stored",
    "is_residual",
    "plan_steps",
    "pruned_ratio",
    "reach",
    "residual_name",
    "schedule_macs",
]

_RESIDUAL = ":residual"


def residual_name(block: str) -> str:
    """Name under which ``output - input`` of a block is stored."""
    return block + _RESIDUAL


def block_of_stored(graph: BlockGraph, name: str) -> str:
    """The block that a stored name (a feature, or a residual) belongs to."""
    return name.removesuffix(_RESIDUAL) if name.endswith(_RESIDUAL) else graph.block_of_feature[name]


def is_residual(graph: BlockGraph, block: str, kind: Kind) -> bool:
    """Whether reusing ``block`` means input + stored residual. The prediction is always reused as an output."""
    return kind == "residual" and block != PREDICTION and graph.block_of_name[block].residual_input is not None


@dataclass(frozen=True)
class Reach:
    """Indices of the pieces that run, the stored names they read, and the blocks that are computed."""

    pieces: frozenset[int]
    reads: frozenset[str]
    computes: frozenset[str]


def reach(graph: BlockGraph, computed: frozenset[str], demands: Iterable[str], kind: Kind) -> Reach:
    """Walk back from demanded values to the pieces that run.

    Args:
        graph: the blocks of the model.
        computed: names of the blocks that are computed. All others are reused.
        demands: names of features, residuals or other values.
        kind: whether reuse is of a block's output or its residual.

    Returns:
        The pieces that run, the stored names that they read, and the blocks among ``computed`` that are reached.
    """
    pieces: set[int] = set()
    reads: set[str] = set()
    computes: set[str] = set()
    seen: set[str] = set()
    todo = list(demands)
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.endswith(_RESIDUAL):
            block = graph.block_of_name[value.removesuffix(_RESIDUAL)]
            todo += [*block.features, *_residual_input(block.residual_input)]
            continue
        owner = graph.block_of_feature.get(value)
        if owner is not None and owner not in computed:
            if is_residual(graph, owner, kind):
                reads.add(residual_name(owner))
                todo += _residual_input(graph.block_of_name[owner].residual_input)
            else:
                reads.add(value)
            continue
        if owner is not None:
            computes.add(owner)
        piece = graph.giver.get(value)
        if piece is not None and piece.index not in pieces:
            pieces.add(piece.index)
            todo += piece.reads
    return Reach(frozenset(pieces), frozenset(reads), frozenset(computes))


def _residual_input(name: str | None) -> list[str]:
    return [] if name is None else [name]


@dataclass(frozen=True)
class StepPlan:
    """The pieces that one step runs.

    Attributes:
        step: number of the step.
        reach: pieces, reads and computed blocks.
        writes: stored names that later steps need, and the prediction if the step computes it.
    """

    step: int
    reach: Reach
    writes: frozenset[str]

    @property
    def is_call(self) -> bool:
        """Whether the step calls the network."""
        return bool(self.writes)


def plan_steps(schedule: Schedule, graph: BlockGraph, share_rows: bool = False) -> tuple[StepPlan, ...]:
    """The plan of every step.

    Args:
        schedule: which blocks each step computes.
        graph: the blocks of the model.
        share_rows: let all steps that compute the same blocks write the same features, so that they can share a graph.

    Returns:
        One plan per step.

    Raises:
        InputError: a step reads a feature that no earlier step wrote. The message names step and block.
    """
    plans = _plan_backwards(schedule, graph, {})
    while share_rows:  # A graph that writes more may read more, which other steps must then write.
        united: dict[frozenset[str], frozenset[str]] = {}
        for plan in plans:
            if plan.is_call:
                row = schedule.computed[plan.step]
                united[row] = united.get(row, frozenset()) | plan.writes
        wider = _plan_backwards(schedule, graph, united)
        if wider == plans:
            break
        plans = wider
    return plans


def _plan_backwards(
    schedule: Schedule, graph: BlockGraph, united: Mapping[frozenset[str], frozenset[str]]
) -> tuple[StepPlan, ...]:
    needed: set[tuple[str, int]] = set()
    plans: list[StepPlan] = []
    for step in range(schedule.steps - 1, -1, -1):
        if schedule.is_computed(step, PREDICTION):
            needed.add((graph.prediction, step))
        writes = frozenset(name for name, at in needed if at == step)
        if writes:
            writes |= united.get(schedule.computed[step], frozenset())
        reached = reach(graph, schedule.computed[step], writes, schedule.kind)
        for name in reached.reads:
            block = block_of_stored(graph, name)
            needed |= {(name, source) for source, _ in schedule.sources(step, block)}
        plans.append(StepPlan(step, reached, writes))
    return tuple(reversed(plans))


def schedule_macs(schedule: Schedule, graph: BlockGraph) -> Macs:
    """MACs per row of the reachable pieces, summed over all steps."""
    total = ZERO_MACS
    for plan in plan_steps(schedule, graph):
        total = total + graph.cost(graph.pieces[index] for index in plan.reach.pieces)
    return total


def pruned_ratio(schedule: Schedule, graph: BlockGraph) -> float:
    """DiP-GO's ratio: the share of the full run's MACs that is pruned (0.80 keeps 20 %), ``papers`` convention."""
    return 1.0 - schedule_macs(schedule, graph).papers / (graph.macs.papers * schedule.steps)

"""The pipeline of lowering: from a schedule to a program.

1. Liveness (`core.liveness`): the pieces that run at each step, and the features that are kept.
2. Layout: the graphs, and the graphs that run at each step.
3. Emission: calls in execution order, over one value per latent, feature and step. No value is overwritten yet.
4. Folding: consecutive combinations become one.
5. Slots: values whose lifetimes do not meet share memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dipgo_deploy.core.blocks import BlockGraph, Macs, fit_contract
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.liveness import StepPlan, plan_steps
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.sampler import SamplerReading
from dipgo_deploy.core.schedule import Schedule, check_schedule
from dipgo_deploy.lowering.emission import Emission
from dipgo_deploy.lowering.folding import drop_unused, fold
from dipgo_deploy.lowering.layouts import GraphPlan, plan_segments, plan_subnets
from dipgo_deploy.lowering.slots import assign_slots

__all__ = ["LowerOptions", "lower", "plan_graphs"]


@dataclass(frozen=True)
class LowerOptions:
    """How to lower a schedule.

    Attributes:
        layout: how graphs are chosen.
        share_graphs: let steps with the same compute row share a graph, as `limit_graphs` assumes.
        fold: fold combinations. Off only to compare results.
    """

    layout: Layout = "subnets"
    share_graphs: bool = False
    fold: bool = True


def lower(
    schedule: Schedule, graph: BlockGraph, sampler: SamplerReading, options: LowerOptions = LowerOptions()
) -> Program:
    """Lower a schedule to a straight-line program.

    Args:
        schedule: which blocks each step computes.
        graph: the blocks of the model.
        sampler: the coefficients of the schedule's sampler.
        options: layout and sharing of graphs.

    Returns:
        The program. Its contract has no wider ranges of free sizes than the traced graph.

    Raises:
        InputError: the schedule does not fit the model, or reads a feature before it is written.
        UsageError: an unknown layout.
    """
    schedule = replace(schedule, contract=fit_contract(schedule.contract, graph))
    plans, layouts = plan_graphs(schedule, graph, options)
    emission = Emission(schedule, graph, plans, layouts)
    emission.emit_trajectory(sampler)
    calls = fold(emission.calls, emission.image) if options.fold else emission.calls
    calls = drop_unused(calls, [emission.image])
    slots, assigned, names = assign_slots(calls, emission.specs, emission.inputs, emission.image)
    full = graph.macs
    factor = schedule.contract.rows_per_image * schedule.steps
    return Program(
        contract=schedule.contract,
        granularity=schedule.granularity,
        kind=schedule.kind,
        layout=options.layout,
        graphs=layouts.graphs,
        slots=slots,
        calls=assigned,
        noise=names["noise"],
        image=names[emission.image],
        conditioning=tuple((name, names[value]) for name, value in emission.conditioning.items()),
        full_macs=Macs(full.papers * factor, full.full * factor),
        share_graphs=options.share_graphs,
    )


def plan_graphs(schedule: Schedule, graph: BlockGraph, options: LowerOptions) -> tuple[Sequence[StepPlan], GraphPlan]:
    """The first two stages of lowering.

    Args:
        schedule: which blocks each step computes.
        graph: the blocks of the model.
        options: layout and sharing of graphs.

    Returns:
        The plan of each step, and the graphs.

    Raises:
        InputError: the schedule does not fit the model, or reads a feature before it is written.
        UsageError: an unknown layout.
    """
    check_schedule(schedule, graph.block_names)
    if options.layout not in ("subnets", "segments"):
        raise UsageError(f"layout {options.layout!r} is unknown: choose subnets or segments")
    plans = plan_steps(schedule, graph, share_rows=options.share_graphs)
    return plans, (plan_subnets if options.layout == "subnets" else plan_segments)(schedule, graph, plans)

"""The pipeline of lowering.

1. Liveness (core.liveness): what runs at each step and what is kept.
2. Layout: which graphs there are and which of them run at each step.
3. Emission: one value per latent, feature and step (nothing is overwritten yet), in execution order.
4. Folding: chains of combinations without a network call in between become one.
5. Slots: values whose lifetimes do not meet share memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipgo_deploy.core.blocks import BlockGraph, Macs
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
    """How to lower.

    ``share_graphs`` lets steps with one compute row share one graph (wanted after ``limit_graphs``); ``fold`` is off
    only to compare.
    """

    layout: Layout = "subnets"
    share_graphs: bool = False
    fold: bool = True


def lower(
    schedule: Schedule, graph: BlockGraph, sampler: SamplerReading, options: LowerOptions = LowerOptions()
) -> Program:
    """The straight-line program of ``schedule`` for the model of ``graph`` under ``sampler``.

    Raises InputError where the schedule does not fit the model or reads a feature before it is written, UsageError for
    an unknown layout.
    """
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
    """What runs at each step, and the graphs that do. Raises as ``lower``."""
    check_schedule(schedule, graph.block_names)
    if options.layout not in ("subnets", "segments"):
        raise UsageError(f"layout {options.layout!r} is unknown: choose subnets or segments")
    plans = plan_steps(schedule, graph, share_rows=options.share_graphs)
    return plans, (plan_subnets if options.layout == "subnets" else plan_segments)(schedule, graph, plans)

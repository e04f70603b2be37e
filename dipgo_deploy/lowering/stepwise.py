"""Lowering for callers that sample themselves: the calls of every step, without the sampler between them.

1. At every step the caller, such as a diffusers pipeline, writes the network's latent input into a slot. After the
   calls of the step it reads the prediction from the slot of that step.
2. Graphs and layouts are those of `lower`, and features live in slots across steps.
3. A step that only holds an earlier prediction has no calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dipgo_deploy.core.blocks import BlockGraph, fit_contract
from dipgo_deploy.core.program import TIMESTEP, Call, Combine, Program, Term
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.lowering.emission import Emission
from dipgo_deploy.lowering.folding import drop_unused
from dipgo_deploy.lowering.lower import LowerOptions, plan_graphs
from dipgo_deploy.lowering.slots import assign_slots

__all__ = ["StepProgram", "begin_at", "lower_steps"]

_LATENT = "latent"


@dataclass(frozen=True)
class StepProgram:
    """A program whose ``noise`` slot takes the network's latent input (rows first) before every step.

    ``predictions[step]`` is the slot that holds the prediction of a step after the calls of that step.
    """

    program: Program
    predictions: tuple[str, ...]


def lower_steps(schedule: Schedule, graph: BlockGraph, options: LowerOptions) -> StepProgram:
    """Lower a schedule without its sampler. Nothing is folded across steps.

    Args:
        schedule: which blocks each step computes.
        graph: the blocks of the model.
        options: layout and sharing of graphs.

    Returns:
        The calls of all steps, and the slots of the predictions.

    Raises:
        InputError: the schedule does not fit the model, or reads a feature before it is written.
        UsageError: an unknown layout.
    """
    schedule = replace(schedule, contract=fit_contract(schedule.contract, graph))
    plans, layouts = plan_graphs(schedule, graph, options)
    emission = _StepEmission(schedule, graph, plans, layouts)
    emission.emit_steps()
    # While slots are assigned, a call stands for the caller's look at each prediction, so that the slot still holds the
    # prediction then. The slot of the latent is written before every step and lives to the end.
    calls = drop_unused(emission.calls, emission.looks)
    slots, assigned, names = assign_slots(calls, emission.specs, emission.inputs, _LATENT)
    kept: list[Call] = []
    predictions: list[str] = []
    for call, after in zip(calls, assigned, strict=True):
        if isinstance(call, Combine) and call.target in emission.looks:
            assert isinstance(after, Combine)
            predictions.append(after.terms[0].slot)
        else:
            kept.append(after)
    used = {slot for value, slot in names.items() if value not in emission.looks}
    program = Program(
        contract=schedule.contract,
        granularity=schedule.granularity,
        kind=schedule.kind,
        layout=options.layout,
        graphs=layouts.graphs,
        slots=tuple(slot for slot in slots if slot.name in used),
        calls=tuple(kept),
        noise=names[_LATENT],
        image=predictions[-1],
        conditioning=tuple((name, names[value]) for name, value in emission.conditioning.items()),
        share_graphs=options.share_graphs,
    )
    return StepProgram(program, tuple(predictions))


class _StepEmission(Emission):
    """Emission without a sampler: one latent that the caller writes at every step, and a look at each prediction."""

    def emit_steps(self) -> None:
        """Emit the calls of all steps."""
        self.specs = {_LATENT: self.graph.inputs[0], **{v: s for v, s in self.specs.items() if v != "noise"}}
        self.inputs = (_LATENT, *self.conditioning.values())
        self.looks: list[str] = []
        prediction = self.graph.prediction
        for plan in self.plans:
            if plan.is_call:
                self._emit_graphs(plan)
            value = self._value(prediction, plan.step)
            look = self._combine(f"look@{plan.step}", self.graph.values[prediction], [Term(value, 1.0)], plan.step)
            self.looks.append(look)

    def _network_input(self, name: str, step: int) -> str:
        return "" if name == TIMESTEP else self.conditioning.get(name, _LATENT)


def begin_at(schedule: Schedule, step: int) -> Schedule:
    """The schedule of a run that begins at a later step, as image-to-image does.

    The first step computes everything. A forecast whose source steps change becomes a hold, because its coefficients
    belong to the original steps.

    Args:
        schedule: the schedule of the whole run.
        step: the first step. Step 0 gives the schedule itself.

    Returns:
        The schedule of the remaining steps.
    """
    if step == 0:
        return schedule
    sampler = schedule.contract.sampler
    rest = replace(schedule.contract, sampler=replace(sampler, timesteps=sampler.timesteps[step:]))
    rows = ((True,) * len(schedule.blocks), *schedule.compute[step + 1 :])
    begun = replace(schedule, contract=rest, compute=rows, forecasts={}, experts=schedule.experts[step:])
    return replace(begun, forecasts=_same_forecasts(schedule, begun, step))


def _same_forecasts(schedule: Schedule, begun: Schedule, first: int) -> dict[tuple[int, str], tuple[float, ...]]:
    kept = {}
    for (step, block), coefficients in schedule.forecasts.items():
        if step > first:
            sources = [source for source, _ in schedule.sources(step, block)]
            earlier = [first + source for source in begun.earlier(step - first, block)]
            if earlier[: len(sources)] == sources:
                kept[step - first, block] = coefficients
    return kept

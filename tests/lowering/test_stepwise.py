"""Step programs: what a caller finds in the slots step by step is what the schedule means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.liveness import plan_steps
from dipgo_deploy.core.program import Combine
from dipgo_deploy.core.sampler import OpaqueSampler
from dipgo_deploy.lowering import LowerOptions, StepProgram, begin_at, lower, lower_steps
from tests.lowering.cases import Case, cases
from tests.lowering.machine import TOLERANCE, combined, distance, run_call
from tests.lowering.semantics import rollout

LAYOUTS = st.sampled_from(["subnets", "segments"])
MANY = settings(max_examples=100, deadline=None)


def check_steps(found: StepProgram, case: Case) -> None:
    """Run step by step, fed what the rollout feeds its network; every prediction is compared with the rollout's."""
    program, contract = found.program, case.schedule.contract
    moments = rollout(case.graph, case.schedule, case.sampler, case.noise, case.conditioning)
    sizes = contract.sizes(len(case.noise))
    slots = {spec.name: np.full(spec.resolve(sizes), np.nan) for spec in program.slots}
    slots |= {slot: case.conditioning[name] for name, slot in program.conditioning}
    for step, moment in enumerate(moments):
        slots[program.noise] = moment.values[case.graph.inputs[0].name]
        for call in (call for call in program.calls if call.step == step):
            if isinstance(call, Combine):
                slots[call.target] = combined(call, slots)
            else:
                run_call(program, case.graph, call, slots, moment)
        prediction = slots[found.predictions[step]]
        assert distance(prediction, moment.values[case.graph.prediction]) < TOLERANCE, step


@MANY
@given(cases(), LAYOUTS, st.booleans())
def test_every_step_gives_the_prediction_of_its_schedule(case: Case, layout: str, share: bool) -> None:
    options = LowerOptions(layout, share)
    found = lower_steps(case.schedule, case.graph, options)
    check_steps(found, case)
    whole = lower(case.schedule, case.graph, case.sampler, options)
    assert found.program.graphs == whole.graphs
    assert [(run.graph, run.step) for run in found.program.runs] == [(run.graph, run.step) for run in whole.runs]


@MANY
@given(cases(), LAYOUTS)
def test_a_step_that_holds_its_prediction_has_no_calls(case: Case, layout: str) -> None:
    found = lower_steps(case.schedule, case.graph, LowerOptions(layout))
    busy = {call.step for call in found.program.calls}
    for plan in plan_steps(case.schedule, case.graph):
        held = not plan.is_call and (plan.step, PREDICTION) not in case.schedule.forecasts
        assert not (held and plan.step in busy)


@MANY
@given(cases(), LAYOUTS, st.data())
def test_a_run_may_begin_at_any_step(case: Case, layout: str, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, case.schedule.steps - 1))
    begun = begin_at(case.schedule, first)
    assert begun.computed[0] == {*case.schedule.blocks} and begun.computed[1:] == case.schedule.computed[first + 1 :]
    assert begun.contract.sampler.timesteps == case.schedule.contract.sampler.timesteps[first:]
    for step, block in begun.forecasts:
        assert begun.forecasts[step, block] == case.schedule.forecasts[step + first, block]
        moved = [(source + first, c) for source, c in begun.sources(step, block)]
        assert moved == list(case.schedule.sources(step + first, block))
    sampler = OpaqueSampler(1.0, case.sampler.input_scales[first:], "made up")
    late = Case(case.graph, begun, sampler, case.noise, case.conditioning)
    check_steps(lower_steps(begun, case.graph, LowerOptions(layout)), late)


@given(cases())
@settings(max_examples=1, deadline=None)
def test_an_unknown_layout_is_refused(case: Case) -> None:
    with pytest.raises(UsageError, match="layout 'rows' is unknown: choose subnets or segments"):
        lower_steps(case.schedule, case.graph, replace(LowerOptions(), layout="rows"))  # type: ignore[arg-type]

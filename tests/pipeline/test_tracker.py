"""Calls are followed along the schedule's timesteps. Other calls are refused, and the next run starts again."""

from __future__ import annotations

import pytest

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.pipeline.calls import RefusedCall
from dipgo_deploy.pipeline.tracker import CallTracker, Place

FALLING = (901.0, 701.0, 501.0, 301.0, 101.0)
REPEATED = (901.0, 701.0, 701.0, 501.0, 301.0)


def tracker(times: tuple[float, ...] = FALLING) -> CallTracker:
    return CallTracker(SamplerSpec("DDIMScheduler", "{}", 5, times))


def follow(calls: CallTracker, *times: float, same: bool = True) -> list[tuple[int, int]]:
    places = [calls.follow(time, 1e-3, same) for time in times]
    return [(place.start, place.step) for place in places]


@pytest.mark.parametrize("times", [FALLING, REPEATED])
def test_a_run_goes_through_the_schedule_and_the_next_one_begins(times):
    calls, whole = tracker(times), [(0, step) for step in range(5)]
    assert follow(calls, *times) == whole and not calls.is_running
    assert follow(calls, *times) == whole


def test_a_run_that_broke_off_is_followed_by_a_new_one():
    calls = tracker()
    assert follow(calls, *FALLING[:3], *FALLING[:2]) == [(0, 0), (0, 1), (0, 2), (0, 0), (0, 1)]


def test_a_late_start_is_followed_to_the_end():
    calls = tracker()
    assert follow(calls, *FALLING[2:]) == [(2, 2), (2, 3), (2, 4)] and not calls.is_running


def test_a_late_start_after_a_broken_off_run_is_seen_where_time_goes_up_or_the_conditioning_changed():
    calls = tracker()
    assert follow(calls, *FALLING[:4], FALLING[1]) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1)]
    other = tracker()
    follow(other, *FALLING[:2])
    assert follow(other, FALLING[3], same=False) == [(3, 3)]


def test_timesteps_may_be_rounded_to_their_dtype():
    assert tracker().follow(896.0, 7.0, True) == Place(0, 0)
    with pytest.raises(RefusedCall):
        tracker().follow(896.0, 1e-3, True)


def test_another_number_of_steps_is_refused_with_both_sides_named():
    message = "the bundle is made for DDIMScheduler with 5 steps, whose call 0 is at timestep 901, got 991: use that"
    with pytest.raises(RefusedCall, match=message):
        follow(tracker(), 991.0)
    calls = tracker()
    with pytest.raises(RefusedCall, match="whose call 1 is at timestep 701, got 501"):
        follow(calls, 901.0, 501.0)
    assert follow(calls, *FALLING[:2]) == [(0, 0), (0, 1)], "a refusal ends the run"


def test_a_second_call_at_one_timestep_is_refused():
    with pytest.raises(RefusedCall, match="whose call 2 is at timestep 501, got 701"):
        follow(tracker(), 901.0, 701.0, 701.0)


def test_conditioning_that_changes_where_the_run_would_go_on_is_refused():
    calls = tracker()
    follow(calls, *FALLING[:2])
    with pytest.raises(RefusedCall, match="the conditioning changed at step 2 of 5: keep it .* its own cache_context"):
        follow(calls, FALLING[2], same=False)


def test_two_calls_a_step_without_a_context_are_refused():
    calls = tracker()
    assert follow(calls, 901.0) == [(0, 0)] and follow(calls, 901.0, same=False) == [(0, 0)]
    with pytest.raises(RefusedCall, match="the conditioning changed at step 1"):
        follow(calls, 701.0, same=False)


def test_reset_forgets_the_run():
    calls = tracker()
    follow(calls, *FALLING[:2])
    calls.reset()
    assert not calls.is_running and follow(calls, FALLING[2], same=False) == [(2, 2)]


def test_a_late_start_at_a_timestep_that_occurs_twice_is_settled_by_the_second_call():
    early, late = tracker(REPEATED), tracker(REPEATED)
    assert follow(early, 701.0, 701.0, 501.0) == [(1, 1), (1, 2), (1, 3)]
    late.follow(701.0, 1e-3, True)
    assert late.follow(501.0, 1e-3, True) == Place(2, 3, replay=True)
    assert follow(late, 301.0) == [(2, 4)]

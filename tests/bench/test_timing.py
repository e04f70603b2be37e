from __future__ import annotations

import gc
from itertools import pairwise

import pytest

from dipgo_deploy.bench.timing import Stopwatch, time_rounds


class FakeMachine:
    """Calls that take the given seconds, on a clock that only these calls move."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.ran, self.collecting = 0.0, [], []
        self.calls = {name: self._call(name, duration) for name, duration in seconds.items()}

    def _call(self, name: str, duration: float):
        def call() -> None:
            self.ran.append(name)
            self.collecting.append(gc.isenabled())
            self.now += duration

        return call

    def mark(self) -> float:
        return self.now

    def elapsed_ms(self, first: float, second: float) -> float:
        return 1e3 * (second - first)


def rounds(machine: FakeMachine, count: int, seed: int = 0) -> list[dict[str, float]]:
    return list(time_rounds(machine.calls, "full", count, seed, machine))


def test_every_round_runs_all_once_and_the_base_twice_after_a_warm_up():
    machine = FakeMachine(full=2.0, schedule=0.5)
    measured = rounds(machine, 3)
    assert measured == [pytest.approx({"full": 2000, "full (again)": 2000, "schedule": 500})] * 3
    assert machine.ran[:2] == ["full", "schedule"]
    for start in (2, 5, 8):
        assert sorted(machine.ran[start : start + 3]) == ["full", "full", "schedule"]


def test_the_order_changes_from_round_to_round_and_repeats_with_the_seed():
    first, same, other = (FakeMachine(full=1.0, a=1.0, b=1.0, c=1.0) for _ in range(3))
    for machine, seed in ((first, 0), (same, 0), (other, 1)):
        rounds(machine, 6, seed)
    assert first.ran == same.ran != other.ran
    orders = [first.ran[start : start + 5] for start in range(4, 34, 5)]
    assert any(one != two for one, two in pairwise(orders))


def test_garbage_is_not_collected_while_the_clock_runs():
    machine = FakeMachine(full=1.0)
    for _ in time_rounds(machine.calls, "full", 2, 0, machine):
        assert gc.isenabled()
    assert machine.collecting == [True, False, False, False, False]


def watch_of(*measured: dict[str, float]) -> Stopwatch:
    watch = Stopwatch("full")
    for round_ms in measured:
        watch.add(round_ms)
    return watch


def test_speedup_is_the_median_of_ratios_within_rounds():
    watch = watch_of(
        {"full": 90.0, "full (again)": 110.0, "schedule": 20.0},  # 5
        {"full": 400.0, "full (again)": 400.0, "schedule": 100.0},  # 4: a slow moment slows both sides
        {"full": 100.0, "full (again)": 100.0, "schedule": 50.0},  # 2
    )
    assert watch.speedup("schedule") == pytest.approx(4.0)
    assert watch.speedup("full") == 1.0
    assert watch.aa_ratio == pytest.approx(1.0)


def test_overhead_on_both_sides_lowers_the_speedup():
    watch = watch_of({"full": 90.0, "full (again)": 110.0, "schedule": 20.0})
    assert watch.speedup("schedule", overhead_ms=60.0) == pytest.approx(2.0)
    assert watch.speedup("full", overhead_ms=60.0) == 1.0


def test_latencies_of_the_base_count_both_series():
    watch = watch_of({"full": 1.0, "full (again)": 3.0, "schedule": 1.0})
    assert watch.latency_ms("full") == pytest.approx({"p50": 2.0, "p90": 2.8})
    assert watch.latency_ms("schedule") == pytest.approx({"p50": 1.0, "p90": 1.0})


def test_the_aa_ratio_shows_a_drift():
    assert watch_of({"full": 3.0, "full (again)": 2.0}).aa_ratio == pytest.approx(1.5)

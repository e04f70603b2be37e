"""Two artifacts are compared leaf by leaf, schedules and contracts by what matters."""

from __future__ import annotations

from dataclasses import replace

from dipgo_deploy.core.differences import Difference, differences, schedule_fields
from tests.core.test_schedule import MIXED, NAMES, rows


def test_leaves_that_differ_or_are_absent():
    first = {"a": {"b": 1, "c": (1, 2)}, "d": {}, "e": None}
    second = {"a": {"b": 2, "c": [1, 2]}, "f": 3, "e": None}
    assert differences(first, second) == (
        Difference("a.b", 1, 2),
        Difference("d", {}, None),
        Difference("f", None, 3),
    )
    assert differences(first, first) == ()


def test_schedules_differ_in_rows_and_sampler_options_and_not_in_their_origin():
    sampler = replace(MIXED.contract.sampler, config='{"eta": 1.0}')
    other = replace(
        MIXED,
        contract=replace(MIXED.contract, sampler=sampler, versions={"torch": "3"}),
        compute=rows("1111", "1011", "0111", "1001", "1111"),
        forecasts={(3, NAMES[1]): (2.0, -1.0)},
        origin={"method": "by hand"},
    )
    found = {
        each.name: (each.first, each.second) for each in differences(schedule_fields(MIXED), schedule_fields(other))
    }
    assert found.pop("contract.sampler.config.eta") == (None, 1.0)
    assert found.pop(f"compute.{NAMES[3]}") == ("11101", "11111")
    assert found.pop(f"forecasts.{NAMES[1]} at step 3") == (None, [2.0, -1.0])
    assert all(name.startswith(("contract.sampler.config", "forecasts")) for name in found)

"""Engines in a limited memory: what is kept, what goes, what a run loads again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipgo_deploy.core.errors import MissingError
from dipgo_deploy.runtime.engine_cache import EngineCache, EngineLoads

MIB = 2**20


def test_without_a_budget_everything_stays():
    residency = EngineCache()
    assert [residency.use(name, 10 * MIB) for name in "abca"] == [(), (), (), None]
    assert residency.names == ("b", "c", "a")


def test_the_least_recently_used_goes_first():
    residency = EngineCache(budget=30, pinned=5)
    for name in "ab":
        residency.use(name, 10)
    residency.use("a", 10)
    assert residency.use("c", 15) == ("b",)
    assert residency.names == ("a", "c")


def test_one_that_never_fits_is_refused():
    with pytest.raises(MissingError, match="a needs 8.0 MiB beside 1.0 MiB of slots and activations, 8.0 MiB of GPU"):
        EngineCache(8 * MIB, MIB).use("a", 8 * MIB)


def test_what_is_not_held_after_a_failed_load_is_loaded_again():
    residency = EngineCache(budget=10)
    assert residency.make_room("a", 6) == () and residency.names == ()
    assert residency.make_room("a", 6) == ()
    residency.hold("a", 6)
    assert residency.make_room("a", 6) is None


def test_more_that_is_pinned_makes_the_least_recently_used_go():
    residency = EngineCache(budget=30 * MIB)
    for name in "abc":
        residency.use(name, 10 * MIB)
    assert residency.pin(0) == () and residency.pin(5 * MIB) == ("a",) and residency.names == ("b", "c")
    with pytest.raises(MissingError, match="c needs 10.0 MiB beside 21.0 MiB of slots and activations, 30.0 MiB"):
        residency.pin(21 * MIB)


def test_a_run_that_fits_loads_nothing_again():
    assert traffic("abab", {"a": 5, "b": 5}, 10, 0) == EngineLoads(0, 0)
    assert traffic("abab", {"a": 5, "b": 5}, 9, 0) == EngineLoads(4, 20)


@given(st.lists(st.sampled_from("abcdef"), min_size=1), st.integers(6, 30))
def test_the_budget_is_never_exceeded(order, budget):
    sizes = dict(zip("abcdef", range(1, 7), strict=True))
    residency = EngineCache(budget)
    for name in order:
        residency.use(name, sizes[name])
        assert residency.held_bytes <= budget
        assert residency.names[-1] == name

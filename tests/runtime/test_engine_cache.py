"""Engines in a limited memory: which engines stay, which are evicted, and which are loaded again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipgo_deploy.core.errors import MissingError
from dipgo_deploy.runtime.engine_cache import EngineCache, EngineLoads, engine_loads

MIB = 2**20


def test_without_a_limit_everything_stays():
    cache = EngineCache()
    assert [cache.use(name, 10 * MIB) for name in "abca"] == [(), (), (), None]
    assert cache.names == ("b", "c", "a")


def test_the_least_recently_used_engine_is_evicted_first():
    cache = EngineCache(limit=30, pinned=5)
    for name in "ab":
        cache.use(name, 10)
    cache.use("a", 10)
    assert cache.use("c", 15) == ("b",)
    assert cache.names == ("a", "c")


def test_an_engine_that_never_fits_is_refused():
    message = "engine a: it needs 8.0 MiB next to 1.0 MiB of slots and activations, gpu_memory is 8.0 MiB: give more"
    with pytest.raises(MissingError, match=f"not enough GPU memory for {message}"):
        EngineCache(8 * MIB, MIB).use("a", 8 * MIB)


def test_an_engine_whose_load_failed_is_loaded_again():
    cache = EngineCache(limit=10)
    assert cache.make_room("a", 6) == () and cache.names == ()
    assert cache.make_room("a", 6) == ()
    cache.hold("a", 6)
    assert cache.make_room("a", 6) is None


def test_more_pinned_memory_evicts_the_least_recently_used_engine():
    cache = EngineCache(limit=30 * MIB)
    for name in "abc":
        cache.use(name, 10 * MIB)
    assert cache.pin(0) == () and cache.pin(5 * MIB) == ("a",) and cache.names == ("b", "c")
    message = "engine c: it needs 10.0 MiB next to 21.0 MiB of slots and activations, gpu_memory is 30.0 MiB"
    with pytest.raises(MissingError, match=message):
        cache.pin(21 * MIB)


def test_a_run_that_fits_loads_nothing_again():
    assert engine_loads("abab", {"a": 5, "b": 5}, 10, 0) == EngineLoads(0, 0)
    assert engine_loads("abab", {"a": 5, "b": 5}, 9, 0) == EngineLoads(4, 20)


@given(st.lists(st.sampled_from("abcdef"), min_size=1), st.integers(6, 30))
def test_the_limit_is_never_exceeded(order, limit):
    sizes = dict(zip("abcdef", range(1, 7), strict=True))
    cache = EngineCache(limit)
    for name in order:
        cache.use(name, sizes[name])
        assert cache.held_bytes <= limit
        assert cache.names[-1] == name

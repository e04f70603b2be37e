"""The user's cache is listed with sizes and last use, and cleared kind by kind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dipgo_deploy.cli.main import run
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.user_cache import cache_entries, clear_cache, mark_used


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path))
    for name, granularity in (("a", "stage"), ("b", "layer")):
        blocks = {"model_class": "DiT", "granularity": granularity}
        write_atomic(tmp_path / "traces" / name / "blocks.json", json.dumps(blocks))
        os.utime(tmp_path / "traces" / name, (0, 0))
    write_atomic(tmp_path / "engines" / "1.json", json.dumps({"path": "/gone/g.engine"}))
    write_atomic(tmp_path / "engines" / "trusted" / ("ab" * 32), "")
    write_atomic(tmp_path / "engines" / "rtx-1-sm89.timing", "times")
    write_atomic(tmp_path / "digests" / "2.json", json.dumps({"path": str(tmp_path)}))
    write_atomic(tmp_path / "locks" / "held", "")
    return tmp_path


def test_entries_say_what_they_are(cache: Path):
    mark_used(cache / "traces" / "b")
    entries = cache_entries()
    assert [entry.what for entry in entries[:2]] == ["DiT at layer", "DiT at stage"]
    whats = {entry.what for entry in entries[2:]}
    assert whats == {
        "/gone/g.engine (gone)", "engine abababababab was built here", "timing cache of rtx-1-sm89", str(cache),
    }  # fmt: skip
    assert entries[0].bytes == (cache / "traces" / "b" / "blocks.json").stat().st_size


def test_one_kind_is_cleared_and_locks_stay(cache: Path):
    assert {entry.kind for entry in clear_cache(["traces"])} == {"traces"}
    assert not list((cache / "traces").iterdir()) and len(cache_entries()) == 4
    clear_cache()
    assert cache_entries() == () == clear_cache() and (cache / "locks" / "held").is_file()
    assert sorted(path.name for path in cache.iterdir()) == ["digests", "engines", "locks", "traces"]


def test_the_command_lists_and_clears(cache: Path, capsys):
    assert run(["cache"]) == 0
    text = capsys.readouterr().out
    assert "DiT at stage" in text and "6 entries" in text and str(cache) in text
    assert run(["cache", "--kind", "digests", "--json"]) == 0
    assert [entry["kind"] for entry in json.loads(capsys.readouterr().out)["entries"]] == ["digests"]
    assert run(["cache", "--kind", "traces", "--clear"]) == 0
    assert capsys.readouterr().out.startswith("removed 2 entries") and len(cache_entries()) == 4
    assert run(["cache", "--kind", "nothing"]) == 2

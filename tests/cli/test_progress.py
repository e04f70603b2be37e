from __future__ import annotations

import pytest

from dipgo_deploy.cli import progress
from dipgo_deploy.cli.progress import watched


def test_lines_tell_share_state_and_time_left_but_not_too_often(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 5.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    last = watched(range(4), lambda done: (done / 4, f"loss {done}"), "training")
    captured = capsys.readouterr()
    assert last == 3 and captured.out == ""
    assert captured.err.splitlines() == ["training …", "   25% loss 1, 33 s left"]


def test_what_a_library_prints_goes_to_stderr(capsys):
    def steps():
        print("chatter")
        yield 1

    watched(steps(), lambda _: None, "work")
    assert capsys.readouterr().out == ""


def test_work_that_ends_without_a_result_is_a_bug():
    with pytest.raises(AssertionError, match="ended without a result"):
        watched([], lambda _: None, "work")

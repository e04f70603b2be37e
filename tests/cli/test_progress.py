from __future__ import annotations

import pytest


def test_lines_tell_share_state_and_time_left_but_not_too_often(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    last = watched(range(4), lambda done: (done / 4, f"loss {done}"), "training")
    captured = capsys.readouterr()
    assert last == 3 and captured.out == ""
    assert captured.err.splitlines() == ["training …", "   25% loss 1, 33 s left"]


def test_time_left_counts_from_the_first_reading_and_anew_in_another_stage(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 30.0, 50.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    watched([0.5, 0.75, 0.1, 0.3, 0.9], lambda share: (share, "going"), "search")
    told = capsys.readouterr().err.splitlines()[1:]
    assert told == [
        "   50% going, 0 s",
        "   75% going, 10 s left",
        "   10% going, 0 s",
        "   30% going, 70 s left",
        "   90% going, 4 s left",
    ]


def test_what_a_library_prints_goes_to_stderr(capsys):
    def steps():
        print("chatter")
        yield 1

    watched(steps(), lambda _: None, "work")
    assert capsys.readouterr().out == ""


def test_work_that_ends_without_a_result_is_a_bug():
    with pytest.raises(AssertionError, match="ended without a result"):
        watched([], lambda _: None, "work")

"""Progress of long work on stderr."""

from __future__ import annotations

from collections.abc import Sequence

from dipgo_deploy.cli import terminal
from dipgo_deploy.cli.terminal import show_progress
from dipgo_deploy.core.progress import Progress, Work, with_overall


def work(*stages: tuple[str, float]) -> Work[str]:
    for stage, done in stages:
        yield Progress(stage, done, 1.0, f"loss {done:g}")
    return "the result"


def ticking(monkeypatch, seconds: Sequence[float]) -> None:
    clock = iter(seconds)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))


def test_lines_say_share_state_and_time_left_but_not_too_often(capsys, monkeypatch):
    ticking(monkeypatch, [0.0, 0.0, 11.0, 12.0, 20.0])
    assert show_progress(work(*(("training", done / 4) for done in range(4))), "search") == "the result"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["search …", "   25% training: loss 0.25, 33 s left"]


def test_time_left_counts_from_the_first_progress_of_a_stage(capsys, monkeypatch):
    ticking(monkeypatch, [0.0, 10.0, 20.0, 30.0, 50.0, 60.0])
    show_progress(work(("a", 0.5), ("a", 0.75), ("b", 0.1), ("b", 0.3), ("b", 0.9)), "search")
    lines = [line.partition(",")[2] for line in capsys.readouterr().err.splitlines()[1:]]
    assert lines == [" 0 s", " 10 s left", " 0 s", " 70 s left", " 4 s left"]


def test_the_time_left_covers_all_stages_where_their_sizes_are_known(capsys, monkeypatch):
    ticking(monkeypatch, [0.0, 0.0, 10.0, 30.0, 40.0])
    sizes = {"a": 1.0, "b": 3.0}
    show_progress(with_overall(work(("a", 0.0), ("a", 1.0), ("b", 2 / 3), ("b", 1.0)), sizes), "bench")
    lines = capsys.readouterr().err.splitlines()[1:]
    assert lines == ["   25% a: loss 1, 30 s left", "   75% b: loss 0.666667, 10 s left", "  100% b: loss 1, 40 s"]


def test_output_of_libraries_goes_to_stderr(capsys):
    def chatty() -> Work[None]:
        print("chatter")
        yield Progress("work", 1, 1)

    show_progress(chatty(), "work")
    assert capsys.readouterr().out == ""

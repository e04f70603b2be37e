from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import typer

from dipgo_deploy.cli import main
from dipgo_deploy.cli.demo import DemoOptions, demo_commands

STEPS = list(demo_commands(DemoOptions(), Path("demo")))


@pytest.mark.parametrize("arguments", STEPS, ids=" ".join)
def test_every_step_is_a_valid_command_line(arguments):
    command = typer.main.get_command(main.app).commands[arguments[0]]
    command.make_context(arguments[0], list(arguments[1:])).close()


def test_the_demo_goes_the_whole_way():
    verbs = [arguments[0] for arguments in STEPS]
    assert [verb for verb in dict.fromkeys(verbs) if verb != "doctor"] == [
        "trace",
        "search",
        "show",
        "export",
        "verify",
        "generate",
        "bench",
    ]


WRITES = {"--out", "--picture", "--plot"}


def test_what_a_step_reads_an_earlier_one_wrote():
    written: set[str] = set()
    for arguments in STEPS:
        made = {word for option, word in pairwise(arguments) if option in WRITES}
        read = {word for word in arguments[1:] if word.startswith("demo")} - made
        assert read <= written
        written |= made


def test_the_demo_prints_each_command_and_stops_at_the_first_failure(monkeypatch, tmp_path, capsys):
    done: list[list[str]] = []

    def fake_run(arguments: list[str]) -> int:
        done.append(arguments)
        return 4 if arguments[0] == "verify" else 0

    run = main.run
    monkeypatch.setattr(main, "run", fake_run)
    assert run(["demo", "--out", str(tmp_path)]) == 4
    assert done[-1][0] == "verify"
    assert capsys.readouterr().err.count("$ dipgo-deploy ") == len(done)


def test_the_demo_ends_with_its_pictures_and_what_to_try(monkeypatch, tmp_path, capsys):
    (tmp_path / "uniform-grid.png").touch()
    run = main.run
    monkeypatch.setattr(main, "run", lambda arguments: 0)
    assert run(["demo", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().err
    assert str(tmp_path / "uniform-grid.png") in text and "Then try:" in text


def test_with_json_the_bench_ends_stdout_with_its_document(monkeypatch, tmp_path):
    done: list[list[str]] = []
    run = main.run
    monkeypatch.setattr(main, "run", lambda arguments: done.append(arguments) or 0)
    assert run(["demo", "--out", str(tmp_path), "--json"]) == 0
    assert [arguments[0] for arguments in done if "--json" in arguments] == ["bench"]
    assert done[-1][0] == "bench"

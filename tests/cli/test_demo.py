from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import typer

from dipgo_deploy.cli import demo, main
from dipgo_deploy.cli.demo import DemoOptions, demo_commands
from dipgo_deploy.cli.outcome import exit_code

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

    def fake(app: object, arguments: list[str]) -> int:
        done.append(arguments)
        if arguments[0] == "doctor":
            return exit_code(app, arguments)
        return 4 if arguments[0] == "verify" else 0

    monkeypatch.setattr(demo, "exit_code", fake)
    assert main.run(["demo", "--out", str(tmp_path)]) == 4
    assert done[-1][0] == "verify"
    said = capsys.readouterr()
    assert said.err.count("$ dipgo-deploy ") == len(done) and "cuda-driver" in said.out


def test_the_demo_ends_with_its_pictures_and_what_to_try(monkeypatch, tmp_path, capsys):
    (tmp_path / "uniform-grid.png").touch()
    monkeypatch.setattr(demo, "exit_code", lambda app, arguments: 0)
    assert main.run(["demo", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().err
    assert str(tmp_path / "uniform-grid.png") in text and "Then try:" in text


def test_with_json_the_bench_ends_stdout_with_its_document(monkeypatch, tmp_path):
    done: list[list[str]] = []
    monkeypatch.setattr(demo, "exit_code", lambda app, arguments: done.append(arguments) or 0)
    assert main.run(["demo", "--out", str(tmp_path), "--json"]) == 0
    assert [arguments[0] for arguments in done if "--json" in arguments] == ["bench"]
    assert done[-1][0] == "bench"

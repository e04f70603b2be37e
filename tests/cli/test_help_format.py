"""``--help`` is grouped, whole and within the width of the terminal."""

from __future__ import annotations

import re

import pytest
import typer

from dipgo_deploy.cli import help_format, main

APP = typer.main.get_command(main.app)


def help_of(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main.run([*command, "--help"]) == 0
    return capsys.readouterr().out


def test_commands_stand_in_groups_with_their_whole_sentence(capsys) -> None:
    text = " ".join(help_of(capsys).split())
    assert "..." not in text.partition("Commands:")[2]
    for command in APP.commands.values():
        assert " ".join(command.help.split()) in text
    titles = ["From a model to a schedule:", "Use and measure a bundle:", "This machine:"]
    assert sorted(titles, key=text.index) == titles


@pytest.mark.parametrize("command", APP.commands)
def test_every_option_stands_in_one_group(command: str, capsys) -> None:
    text = help_of(capsys, command)
    for parameter in APP.commands[command].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            assert len(re.findall(rf"^  {parameter.opts[-1]}(?![\w-])", text, re.MULTILINE)) == 1, parameter.opts
    assert not re.search("[\u2500-\u257f]", text)


def test_every_grouped_option_exists() -> None:
    known = {name for command in APP.commands.values() for one in command.params for name in one.opts}
    assert {name for names in help_format._OPTIONS.values() for name in names} <= known
    assert {name for names in help_format._COMMANDS.values() for name in names} <= set(APP.commands)


@pytest.mark.parametrize("command", ["search", "generate", "bench"])
def test_help_fits_a_narrow_terminal(command: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, help_of(capsys, command).splitlines())) <= 60

"""Options that were renamed end in one line that names the new option. Parameters in errors are shown as options."""

from __future__ import annotations

import pytest
import typer

from dipgo_deploy.cli.main import app, run
from dipgo_deploy.cli.outcome import OPTION_OF_PARAMETER, RENAMED_OPTIONS, exit_code
from dipgo_deploy.core.errors import UsageError
from tests.cli.refusal import refused

CASES = [(command, old, new) for command, options in RENAMED_OPTIONS.items() for old, new in options.items()]


def option_names(command: str) -> set[str]:
    group = typer.main.get_command(app)
    return {name for parameter in group.commands[command].params for name in parameter.opts}


@pytest.mark.parametrize(("command", "old", "new"), CASES)
def test_an_old_option_names_the_new_one(command, old, new, capsys):
    refused([command, old, "1"], f"{old} was renamed: use {new}", capsys, 2)
    assert old not in option_names(command)
    assert {name for name in new.split() if name.startswith("--")} <= option_names(command)


def test_every_parameter_is_shown_as_an_option_that_exists():
    known = {name for command in typer.main.get_command(app).commands for name in option_names(command)}
    assert set(OPTION_OF_PARAMETER.values()) <= known


def test_parameters_in_errors_are_shown_as_options(capsys):
    def fail(**_: object) -> None:
        raise UsageError("gpu_memory is for backends tensorrt and rtx: leave it out, or see gpu_memory_note")

    assert exit_code(fail, []) == 2
    assert capsys.readouterr().err == (
        "error: --gpu-memory is for backends tensorrt and rtx: leave it out, or see gpu_memory_note\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["generate", "gpus"], "gpus is not a folder: give a bundle"),
        ([], "out/random_weights/gpus.json does not exist: check the path"),
        ([], "model.random_weights is missing: give export.max_graphs, or 'gpus'"),
    ],
)
def test_paths_recipe_keys_and_what_the_user_typed_stay_as_they_are(arguments, text, capsys):
    def fail(**_: object) -> None:
        raise UsageError(text)

    exit_code(fail, arguments)
    assert capsys.readouterr().err == f"error: {text}\n"


@pytest.mark.parametrize("option", [["--steps", "0"], ["--ratio", "cat"]])
def test_a_wrong_value_is_named_once(option, tmp_path, capsys):
    refused(["search", "digits-unet", "--out", tmp_path / "s.json", *option], "", capsys, 2)
    assert run(["search", "digits-unet", "--out", str(tmp_path / "s.json"), *option]) == 2
    assert capsys.readouterr().err.count(f"'{option[1]}'") == 1

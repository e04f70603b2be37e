from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import pytest
import typer

from dipgo_deploy import __version__
from dipgo_deploy.cli import main
from dipgo_deploy.cli.outcome import signals_interrupt
from dipgo_deploy.core.errors import DipgoError, GateError, InputError, MissingError, UsageError

COMMANDS = ("trace", "profile", "search", "import-schedule", "export-schedule", "export", "plan", "build-engine")
COMMANDS += ("verify", "generate", "show", "bench", "run", "demo", "env", "doctor", "cache")
HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "pydantic", "numpy")
HEAVY += ("matplotlib", "sklearn", "PIL", "rich")


def error_line(capsys) -> str:
    """The only line on stderr; stdout must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err


def test_importing_the_command_line_loads_nothing_heavy():
    code = f"import sys, dipgo_deploy.cli.main; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command(capsys):
    assert main.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert tuple(re.findall(r"^  ([a-z-]+)  ", text.partition("Commands:")[2], re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    assert main.run([command, "--help"]) == 0
    assert f"Usage: dipgo-deploy {command}" in capsys.readouterr().out


def test_no_command_prints_help_on_stderr_and_is_a_usage_error(capsys):
    assert main.run([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Commands:" in captured.err


def test_version(capsys):
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"dipgo-deploy {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command"),
        (["search"], "no model is named: give MODEL"),
        (["search", "digits-unet", "--nope"], "No such option"),
        (["search", "digits-unet", "--ratio", "1.5"], "ratio 1.5"),
        (["search", "digits-unet", "--ratio", "-0.1"], "ratio -0.1"),
        (["search", "digits-unet", "--ratio", "nan"], "ratio nan"),
        (["search", "digits-unet", "--ratio", "much"], "--ratio"),
        (["search", "digits-unet", "--steps", "0"], "--steps"),
        (["search", "digits-unet", "--guidance", "twice"], "--guidance"),
        (["search", "digits-unet", "--granularity", "atom"], "--granularity"),
        (["search", "digits-unet", "--kind", "input"], "--kind"),
        (["search", "digits-unet", "--method", "guess"], "method 'guess'"),
        (["search", "digits-unet", "--blocks", "a,,b"], "empty pattern"),
        (["trace", "digits-unet", "--blocks", ""], "empty pattern"),
        (["export", "digits-unet", "--out", "x"], "--schedule"),
        (["export", "digits-unet", "--schedule", "s.json", "--out", "x", "--limit-graphs", "0"], "--limit-graphs"),
        (["export", "digits-unet", "--schedule", "s.json", "--out", "x", "--layout", "heap"], "--layout"),
        (["show", "x.json", "--out", "x.gif"], "x.gif"),
        (["generate", "bundle", "--out", "x.gif"], "x.gif"),
        (["generate", "bundle", "--guidance", "-1"], "--guidance"),
        (["bench", "bundle", "--batch", "0"], "--batch"),
        (["env", "extra"], "extra"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments, words, capsys):
    assert main.run(arguments) == 2
    assert words in error_line(capsys)


@pytest.mark.parametrize("command", ["trace", "search", "export", "verify", "generate", "show", "bench"])
def test_an_unknown_option_is_refused_before_anything_heavy_is_imported(command):
    code = (
        "import sys; from dipgo_deploy.cli.main import run;"
        f"code = run(['{command}', '--no-such-option']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"


def test_a_wrong_ratio_is_refused_before_torch_is_imported():
    code = (
        "import sys; from dipgo_deploy.cli.main import run;"
        "code = run(['search', 'digits-unet', '--ratio', '1.5']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"


def failing(error: BaseException):
    def command() -> None:
        raise error

    return command


def run_failing(monkeypatch, error: BaseException) -> int:
    """Exit code of an app whose only command raises ``error``."""
    app = typer.Typer()
    app.command()(failing(error))
    monkeypatch.setattr(main, "app", app)
    return main.run([])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DipgoError("root"), 1),
        (UsageError("usage"), 2),
        (InputError("input"), 3),
        (GateError("gate"), 4),
        (MissingError("missing"), 5),
        (ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"), 5),
        (ModuleNotFoundError("No module named 'surprise'", name="surprise"), 1),
        (ZeroDivisionError("two\nlines"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exceptions_become_exit_codes_and_one_line(error, code, monkeypatch, capsys):
    monkeypatch.delenv("DIPGO_TRACEBACK", raising=False)
    assert run_failing(monkeypatch, error) == code
    assert "Traceback" not in error_line(capsys)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_with_one_line_after_the_work_has_cleaned_up(name, code, monkeypatch, capsys):
    cleaned, number = [], getattr(signal, name)

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            cleaned.append(name)

    app, before = typer.Typer(), signal.getsignal(number)
    app.command()(command)
    monkeypatch.setattr(main, "app", app)
    monkeypatch.setattr("sys.argv", ["dipgo-deploy"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == code and cleaned == [name]
    assert error_line(capsys) == f"error: ended by {name}: run the same command again\n"
    assert signal.getsignal(number) == before
    assert run_failing(monkeypatch, KeyboardInterrupt()) == 130  # the signal is not remembered


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_interrupt():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_missing_extra_is_named(monkeypatch, capsys):
    run_failing(monkeypatch, ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"))
    assert "pip install 'dipgo-deploy[cpu]'" in error_line(capsys)


def test_an_unexpected_failure_says_how_to_see_more(monkeypatch, capsys):
    monkeypatch.delenv("DIPGO_TRACEBACK", raising=False)
    run_failing(monkeypatch, ZeroDivisionError("by zero"))
    line = error_line(capsys)
    assert "unexpected failure: by zero (set DIPGO_TRACEBACK=1" in line and "ZeroDivisionError" not in line


def test_the_traceback_is_shown_on_demand(monkeypatch, capsys):
    monkeypatch.setenv("DIPGO_TRACEBACK", "1")
    run_failing(monkeypatch, InputError("bad file"))
    assert "Traceback" in capsys.readouterr().err


def test_the_module_runs_as_a_program_and_exits_with_the_code():
    done = subprocess.run(
        [sys.executable, "-m", "dipgo_deploy.cli.main", "frobnicate"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")


@pytest.mark.parametrize("command", ["env", "doctor"])
def test_json_is_one_document_on_the_last_line(command, capsys):
    assert main.run([command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["schema_version"] == "1.0"


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"NO_COLOR": "1", "CI": "true"}])
@pytest.mark.parametrize("command", ["doctor", "--help"])
def test_no_color_leaves_no_escape_codes(command, variables):
    done = subprocess.run(
        [sys.executable, "-m", "dipgo_deploy.cli.main", command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    assert "\x1b[3" not in done.stdout + done.stderr


def test_a_warning_of_the_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(
        main, "run", lambda arguments: warnings.warn_explicit("odd", UserWarning, main.__file__, 1) or 0
    )
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        warnings.simplefilter("always")
        main.main()
    assert capsys.readouterr().err == "warning: odd\n"

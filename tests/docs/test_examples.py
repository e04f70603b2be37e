"""The README's Python example, its commands, and the examples of the tutorials run as they are printed."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from dipgo_deploy.cli.main import run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.search(r"## Python\n\n```python\n(.*?)```", README, re.DOTALL).group(1)


def test_the_python_example_on_a_small_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = PYTHON.replace('"dipgo", ', '"uniform", ').replace("steps=50", "steps=6")
    assert small.count("uniform") == 1 and "steps=6" in small
    names: dict[str, object] = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["images"].shape == (10, 1, 16, 16)
    assert names["schedule"].origin["method"] == "uniform"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_python_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(PYTHON, "README.md", "exec"), names)
    assert names["images"].shape == (10, 1, 16, 16)
    assert names["schedule"].origin["method"] == "dipgo"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^\$ dipgo-deploy (.*)$", README, re.MULTILINE)
    assert len(lines) == 4
    assert [line for line in lines if run(shlex.split(line)) != 0] == []
    assert (tmp_path / "sevens.png").is_file()


@pytest.mark.parametrize("example", ["own_module", "drop_in"])
def test_an_example_of_the_tutorials(example, tmp_path, monkeypatch):
    """Every line of the docstring that is a command, one after the other, and the Python of the module's page."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    script = ROOT / "examples" / f"{example}.py"
    lines = re.findall(r"^(dipgo-deploy|python) (.*)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 3
    for program, rest in lines:
        words = shlex.split(rest)
        if program == "dipgo-deploy":
            assert run(words) == 0, rest
        else:
            monkeypatch.setattr("sys.argv", [str(script), *words[1:]])
            runpy.run_path(str(script), run_name="__main__")
    if example == "own_module":
        page = (ROOT / "docs" / "tutorials" / "own-module.md").read_text(encoding="utf-8")
        names: dict[str, object] = {}
        exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), "own-module.md", "exec"), names)
        assert names["image"].shape == (1, 3, 16, 16)

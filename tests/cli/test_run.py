from __future__ import annotations

import json

import pytest

from dipgo_deploy.cli.main import run
from dipgo_deploy.recipes import bundle_calls
from tests.recipes.recipes import TINY, write_recipe

RULE = TINY.replace('"dipgo"', '"fora"').replace("iterations = 12\npolish = 0\nimages = 2\n", "")


def test_a_run_says_what_each_stage_does_and_ends_with_a_document(tmp_path, capsys):
    recipe = write_recipe(tmp_path, RULE)
    assert run(["run", str(recipe), "--until", "search", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["out"] == str(tmp_path / "tiny")
    assert [stage["status"] for stage in document["stages"]] == ["ran", "ran", "ran"]
    assert run(["run", str(recipe), "--until", "search", "--force", "trace", "--set", "search.ratio=0.3"]) == 0
    said = capsys.readouterr()
    assert "trace: forced" in said.err and "search: inputs changed (search.ratio)" in said.err
    assert "search uniform: up to date" in said.err and "2 of 3 stages ran" in said.out


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--set", "search.rato=1"], "search.rato is unknown: choose method", 2),
        (["--set", "sampler.steps=six"], "sampler.steps cannot be 'six'", 2),
        (["--until", "build"], "stage 'build' is unknown: choose trace", 2),
        (["--force", "build"], "stage 'build' is unknown: choose trace", 2),
        (["--set", "search.depth=2"], "search: depth does not belong to method fora", 2),
    ],
)
def test_what_makes_no_sense_ends_in_one_line_before_anything_is_written(tmp_path, capsys, arguments, words, code):
    assert run(["run", str(write_recipe(tmp_path, RULE)), *arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("…")]
    assert len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "tiny").exists()


def test_an_unknown_recipe_is_refused_with_the_shipped_names(capsys):
    assert run(["run", "digits"]) == 3
    assert "no recipe 'digits': give a TOML file, or one of ddpm-church-256" in capsys.readouterr().err


def test_a_target_that_cannot_be_built_is_an_environment_error(tmp_path, capsys, monkeypatch):
    from dipgo_deploy.core.errors import MissingError

    def refuse(name: str, section: object) -> str:
        raise MissingError("no GPU to build for: name one")

    monkeypatch.setattr(bundle_calls, "check_target", refuse)
    assert run(["run", str(write_recipe(tmp_path, RULE + "[targets.rtx]\n"))]) == 5
    assert "targets.rtx: no GPU" in capsys.readouterr().err

"""import-schedule and export-schedule from their command lines to their files."""

from __future__ import annotations

import json

import pytest

from dipgo_deploy.cli.main import run
from dipgo_deploy.core.files import load_schedule
from tests.cli.refusal import refused

SHORT = ["import-schedule", "digits-unet", "--steps", "6"]


def test_a_schedule_goes_there_and_back(tmp_path, capsys):
    made, sent, back = (str(tmp_path / name) for name in ("s.json", "theirs.json", "again.json"))
    assert run([*SHORT, "--from", "deepcache", "--interval", "3", "--branch", "1", "--out", made]) == 0
    assert "deepcache: ratio 0." in capsys.readouterr().out
    assert run(["export-schedule", made, "--to", "deepcache", "--out", sent, "--json"]) == 0
    wanted = {"cache_interval": 3, "cache_branch_id": 1, "skip_mode": "uniform"}
    assert (
        json.loads(capsys.readouterr().out)["document"] == wanted == json.loads((tmp_path / "theirs.json").read_text())
    )
    assert run([*SHORT, "--from", "deepcache", "--file", sent, "--out", back, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6
    assert load_schedule(tmp_path / "again.json") == load_schedule(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["--from", "fora", "--branch", "1"], "--branch is not a setting of fora: leave it out", 2),
        (["--from", "deepcache"], "no settings of deepcache were given: give --file or --interval", 2),
        (["--from", "smoothcache"], "no settings of smoothcache were given: give --file", 2),
        (["--from", "abacus"], "--from", 2),
        (["--from", "deepcache", "--interval", "2", "--branch", "40"], "cache_branch_id 40 lies below the model's", 3),
        (["--from", "deepcache", "--interval", "2", "--skip-mode", "quad"], "skip_mode: Input should be 'uniform'", 3),
        (["--from", "cache-dit", "--file", "none.json"], "none.json does not exist", 3),
        (["--from", "cache-dit", "--first", "2"], "steps_computation_mask: Field required", 3),
        (["--from", "deepcache", "--interval", "2", "--sampler", "abacus"], "'abacus' is not one of", 2),
    ],
)  # fmt: skip
def test_an_import_is_refused_in_one_line(options, words, code, tmp_path, capsys):
    refused([*SHORT, *options, "--out", tmp_path / "s.json"], words, capsys, code)


@pytest.mark.parametrize("content", ["", "[1, 0]", '{"cache_interval": 1e999}', '{"__class__": 1}', "\x00\x01", "NaN"])
def test_a_file_of_anything_else_is_refused_in_one_line(content, tmp_path, capsys):
    (tmp_path / "theirs.json").write_text(content)
    options = ["--from", "deepcache", "--file", tmp_path / "theirs.json"]
    refused([*SHORT, *options, "--out", tmp_path / "out" / "s.json"], "", capsys)


def test_an_export_is_refused_in_one_line(tmp_path, capsys):
    made = tmp_path / "s.json"
    assert run(["search", "digits-unet", "--steps", "6", "--interval", "2", "--out", str(made)]) == 0
    capsys.readouterr()
    target = ["--out", tmp_path / "out" / "theirs.json"]
    refused(["export-schedule", made, "--to", "deepcache", *target], "search a schedule at layer", capsys)
    refused(
        ["export-schedule", made, "--to", "cache-dit", *target], "step 1 reuses the output of down_blocks.0", capsys
    )
    refused(["export-schedule", tmp_path, "--to", "dipgo", *target], "is a folder", capsys)
    assert run(["export-schedule", str(made), "--to", "dipgo", "--out", str(tmp_path / "t.json")]) == 0
    assert set(json.loads((tmp_path / "t.json").read_text())["compute"].values()) == {"101010"}
    back = ["--from", "dipgo", "--file", str(tmp_path / "t.json"), "--out", str(tmp_path / "again.json")]
    assert run([*SHORT, *back]) == 0
    assert load_schedule(tmp_path / "again.json") == load_schedule(made)

"""The search command from its command line to its files, at few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipgo_deploy.cli.main import run
from dipgo_deploy.core.files import load_schedule

SHORT = ["search", "digits-unet", "--steps", "6", "--ratio", "0.5"]
FEW = ["--images", "2"]


def searched(out: Path, *options: str) -> int:
    return run([*SHORT, "--out", str(out), *options])


def test_a_rule_draws_its_picture(tmp_path, capsys):
    assert searched(tmp_path / "s.json", "--method", "uniform", "--picture", str(tmp_path / "s.png")) == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "ratio 0.5000" in capsys.readouterr().out


def test_a_ratio_that_cannot_be_reached_is_warned_of(tmp_path, capsys):
    assert searched(tmp_path / "s.json", "--method", "uniform", "--ratio", "0.99") == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith("warning: the ratio is 0.8333, but 0.99 was requested: take more steps or a finer")
    assert "uniform reaches 0 to 0.8333 with 6 steps" in warning
    for options in (["--ratio", "0.5"], ["--ratio", "0.99", "--interval", "2"], ["--calls", "3"]):
        assert searched(tmp_path / "s.json", "--method", "uniform", *options, "--force") == 0
        assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "options"),
    [("best-random", ["--candidates", "2"]), ("dpcache", []), ("evolutionary", ["--trajectories", "6"])],
)
def test_a_method_that_runs_the_model_counts_its_cost(method, options, tmp_path, capsys):
    assert searched(tmp_path / "s.json", "--method", method, *options, "--json", *FEW) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["out"] == str(tmp_path / "s.json")
    origin = load_schedule(tmp_path / "s.json").origin
    assert origin["method"] == method and float(origin["search_cost"]) > 2


def test_a_gradient_search_goes_on_and_its_pruner_serves_another_ratio(tmp_path, capsys):
    out, picture = tmp_path / "s.json", tmp_path / "scores.svg"
    options = ["--method", "dipgo", "--iterations", "2", "--polish", "4", "--picture", str(picture), *FEW]
    assert searched(out, *options) == 0
    assert "a gradient step holds" in capsys.readouterr().err
    assert "what the search learn" in picture.read_text(encoding="utf-8")
    first = load_schedule(out)
    assert searched(out, *options) == 0
    assert "after 2 of 2 iterations" in capsys.readouterr().err
    assert load_schedule(out) == first
    other = tmp_path / "other.json"
    pruner = ["--from-pruner", str(tmp_path / "s.pruner"), "--ratio", "0.3"]
    assert searched(other, "--method", "dipgo", *pruner) == 0
    assert "ratio 0.3" in capsys.readouterr().out.splitlines()[0]


def test_calls_decide_what_is_computed(tmp_path, capsys):
    assert searched(tmp_path / "s.json", "--method", "uniform", "--calls", "2", "--json") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["calls"], summary["asked_ratio"]) == (2, None)
    assert searched(tmp_path / "s.json", "--method", "uniform", "--calls", "2") == 0
    assert capsys.readouterr().out.splitlines()[0] == "uniform: ratio 0.6667"


def test_a_limit_on_graphs_holds(tmp_path):
    out = tmp_path / "s.json"
    assert searched(out, "--method", "random", "--max-graphs", "2") == 0
    assert len({step for step in load_schedule(out).computed if step}) <= 3

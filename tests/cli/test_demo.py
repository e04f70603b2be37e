from __future__ import annotations

import json
from pathlib import Path

from dipgo_deploy.cli import demo, main
from dipgo_deploy.core.errors import GateError
from dipgo_deploy.recipes import find_recipe, load_recipe
from dipgo_deploy.recipes.runner import RunReport
from dipgo_deploy.recipes.stages import Job, stages_of


def test_the_demo_goes_the_whole_way_with_three_schedules():
    recipe = load_recipe(find_recipe("demo"))
    stages = list(stages_of(Job(recipe, Path("demo"))))
    kinds = list(dict.fromkeys(stage.kind for stage in stages))
    assert kinds == ["trace", "search", "export", "verify", "draw", "bench"]
    budgets = {name: (section.ratio, section.granularity) for name, section in recipe.schedules.items()}
    assert budgets == {"dipgo": (0.8, "stage"), "uniform": (0.8, "stage"), "deepcache": (0.5, "layer")}
    assert Job(recipe, Path("demo")).benched == ["dipgo", "uniform"]


def test_the_shipped_pruner_fits_the_demo(tmp_path, digits_unet):
    """Its options are those of the recipe, so that the search goes on from it."""
    from dipgo_deploy.models import make_contract
    from dipgo_deploy.recipes import model_calls
    from dipgo_deploy.search.dipgo.pruner_file import read_record

    recipe = load_recipe(find_recipe("demo"))
    record = read_record(model_calls.start_pruner(recipe, recipe.search))
    sampler = recipe.sampler
    contract = make_contract(digits_unet, sampler=sampler.name, steps=sampler.steps, guidance=sampler.guidance_layout)
    assert record.contract.sampler == contract.sampler and record.granularity == recipe.search.granularity
    assert 0 < record.done


def faked(monkeypatch, outcome: Exception | None = None) -> list[Path]:
    """The demo without its run."""
    folders: list[Path] = []

    def run_shown(recipe: object, out: Path) -> RunReport:
        folders.append(out)
        if outcome is not None:
            raise outcome
        return RunReport(out, ())

    monkeypatch.setattr(demo, "run_shown", run_shown)
    return folders


def test_the_demo_ends_with_its_pictures_and_what_to_try(monkeypatch, tmp_path, capsys):
    (tmp_path / "uniform-grid.png").touch()
    assert faked(monkeypatch) == []
    assert main.run(["demo", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert str(tmp_path / "uniform-grid.png") in said.err and "Then try:" in said.err
    assert "cuda-driver" in said.out


def test_the_commands_to_try_are_valid_command_lines(capsys, tmp_path, monkeypatch):
    import shlex

    import typer

    faked(monkeypatch)
    assert main.run(["demo", "--out", str(tmp_path)]) == 0
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().err.splitlines() if "  dipgo-deploy" in line]
    assert len(lines) == 6
    for line in lines:
        name, *arguments = shlex.split(line)
        typer.main.get_command(main.app).commands[name].make_context(name, arguments).close()


def test_the_demo_stops_at_the_first_failure(monkeypatch, tmp_path, capsys):
    faked(monkeypatch, GateError("verify: not met"))
    assert main.run(["demo", "--out", str(tmp_path)]) == 4
    assert "Then try:" not in capsys.readouterr().err


def test_with_json_the_bench_ends_stdout_with_its_document(monkeypatch, tmp_path, capsys):
    from dipgo_deploy import bench

    faked(monkeypatch)
    monkeypatch.setattr(bench, "load_report", lambda path: path, raising=False)
    monkeypatch.setattr(bench, "to_json", lambda path: {"format": "bench", "path": str(path)}, raising=False)
    assert main.run(["demo", "--out", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["path"] == str(tmp_path / "bench.json")

"""A command that runs twice replaces its own result, and nothing else without --force."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bench.figure import image_grid, new_figure
from dipgo_deploy.cli.main import run
from dipgo_deploy.cli.replacing import check_picture_target
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_schedule

PNG = b"\x89PNG\r\n\x1a\n holiday"


def ran(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def twice(capsys, arguments: list[object], other: list[object], out: Path, held: str) -> None:
    """The same command runs again, another command is refused and leaves the file, and --force replaces the file."""
    assert ran(*arguments) == 0 and ran(*arguments) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert ran(*other) == 3 and out.read_bytes() == before
    error = capsys.readouterr().err
    assert held in error and "made from other inputs than these" in error and "--force to replace it" in error
    assert ran(*other, "--force") == 0 and out.read_bytes() != before


@pytest.fixture
def schedule(traced, tmp_path: Path) -> Path:
    traced("digits-unet", "stage")
    assert ran("search", "digits-unet", "--steps", 6, "--ratio", 0.5, "--out", tmp_path / "s.json") == 0
    return tmp_path / "s.json"


def test_search(schedule: Path, capsys):
    def command(ratio: float) -> list[object]:
        return ["search", "digits-unet", "--steps", 6, "--ratio", ratio, "--out", schedule]

    twice(capsys, command(0.5), command(0.6), schedule, "s.json holds a schedule (uniform 0.5)")
    for change in (["--kind", "residual"], ["--seed", 1], ["--steps", 7], ["--guidance-layout", "concat"]):
        assert ran(*command(0.6), *change) == 3
    document = json.loads(schedule.read_text())
    document["compute"]["mid_block"] = "1" * 6
    schedule.write_text(json.dumps(document))
    assert ran(*command(0.6)) == 3, "a schedule that was edited by hand is another schedule"
    assert load_schedule(schedule).computed[1] == frozenset({"mid_block"}) | load_schedule(schedule).computed[1]


@pytest.mark.parametrize(
    "command",
    [
        ["search", "digits-unet", "--out"],
        ["import-schedule", "digits-unet", "--from", "deepcache", "--interval", 2, "--out"],
        ["profile", "digits-unet", "--out"],
        ["bench", "bundle", "--out"],
        ["generate", "bundle", "--out"],
        ["show", "schedule.json", "--out"],
        ["search", "digits-unet", "--out", "new.json", "--picture"],
    ],
)
def test_no_command_writes_over_a_picture_of_the_user(command, tmp_path: Path, capsys):
    picture = tmp_path / "picture.png"
    picture.write_bytes(PNG)
    assert ran(*command, picture) == 3 and picture.read_bytes() == PNG
    error = capsys.readouterr().err
    assert "is a PNG picture" in error and "--force to replace it" in error


def test_import_schedule(traced, tmp_path: Path, capsys):
    traced("digits-unet", "layer")
    out = tmp_path / "s.json"
    settings = ["--from", "deepcache", "--branch", 0, "--steps", 6, "--out", out]

    def command(interval: int) -> list[object]:
        return ["import-schedule", "digits-unet", *settings, "--interval", interval]

    twice(capsys, command(2), command(3), out, "s.json holds another schedule")
    exported = tmp_path / "deepcache.json"
    export = ["export-schedule", out, "--to", "deepcache", "--out", exported]
    assert ran(*export) == 0 and ran(*export) == 0
    exported.write_text("{}")
    assert ran(*export) == 3 and exported.read_text() == "{}"


def test_export(schedule: Path, digits_unet, tmp_path: Path, capsys):
    out, model = tmp_path / "bundle", Path(shutil.copytree(digits_unet.folder, tmp_path / "model"))
    command = ["export", model, "--schedule", schedule, "--out", out]
    twice(capsys, command, [*command, "--layout", "segments"], out / "program.json", "is a bundle with layout subnets")
    assert ran(*command, "--force") == 0
    other = tmp_path / "other.json"
    assert ran("search", "digits-unet", "--steps", 7, "--out", other) == 0
    assert ran("export", model, "--schedule", other, "--out", out) == 3
    (model / "class_embedder" / "config.json").write_text((model / "class_embedder" / "config.json").read_text() + "\n")
    assert ran(*command) == 3
    assert "is a bundle with another class_embedder/config.json" in capsys.readouterr().err
    (out / "schedule.json").write_text((out / "schedule.json").read_text() + "\n")
    assert ran(*command) == 3
    assert "is damaged or was edited, so that it cannot be compared" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model", "other.json", "s.json"]


def test_trace(traced, tmp_path: Path, capsys):
    own = Path(shutil.copytree(traced("digits-unet", "stage").folder, tmp_path / "trace"))
    assert ran("trace", "digits-unet", "--out", own) == 0
    for other in (["--granularity", "layer"], ["--size", "32x32"]):
        assert ran("trace", "digits-unet", "--out", own, *other) == 3
        assert "holds a trace of UNet2DConditionModel" in capsys.readouterr().err


def test_pictures_that_were_drawn_here_are_replaced(tmp_path: Path):
    for name in ("figure.png", "figure.svg"):
        with new_figure(tmp_path / name):
            pass
    image_grid(np.zeros((1, 1, 4, 4), np.float32), tmp_path / "grid.png", 1)
    for path in tmp_path.iterdir():
        check_picture_target(path, force=False)
    (tmp_path / "own.svg").write_text("<svg/>")
    with pytest.raises(InputError, match="own.svg is a text file that dipgo-deploy did not draw: give another --out"):
        check_picture_target(tmp_path / "own.svg", force=False)

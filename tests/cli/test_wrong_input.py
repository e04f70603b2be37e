"""Wrong input ends in one line on stderr and the documented exit code, never in a traceback or a half-written file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dipgo_deploy.cli.main import run

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"


@pytest.fixture
def schedule() -> dict:
    """The hand-written schedule of docs/formats.md."""
    return json.loads(re.search(r"```json\n(.*?)```", FORMATS.read_text(encoding="utf-8"), re.DOTALL).group(1))


def refused(arguments: list[object], words: str, capsys) -> None:
    """The command exits 3 with one line that holds ``words``, after nothing but progress."""
    assert run([str(argument) for argument in arguments]) == 3
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.endswith(" …")]
    assert captured.out == "" and len(lines) == 1
    assert lines[0].startswith("error: ") and words in lines[0]


def readers(file: Path, folder: Path) -> list[list[object]]:
    """The commands that read a schedule."""
    return [["show", file], ["export", "digits-unet", "--schedule", file, "--out", folder / "bundle"]]


@pytest.mark.parametrize("reader", [0, 1], ids=["show", "export"])
class TestSchedule:
    def test_missing(self, reader, tmp_path, capsys):
        refused(readers(tmp_path / "none.json", tmp_path)[reader], "does not exist", capsys)

    def test_truncated(self, reader, schedule, tmp_path, capsys):
        file = tmp_path / "schedule.json"
        file.write_text(json.dumps(schedule)[:-40])
        refused(readers(file, tmp_path)[reader], "is not valid JSON", capsys)
        assert list(tmp_path.iterdir()) == [file]

    def test_newer_version(self, reader, schedule, tmp_path, capsys):
        file = tmp_path / "schedule.json"
        file.write_text(json.dumps(schedule | {"format_version": "2.0"}))
        refused(readers(file, tmp_path)[reader], "format version 2.0", capsys)

    def test_reads_before_it_wrote(self, reader, schedule, tmp_path, capsys):
        schedule["compute"]["mid_block"] = "00010"
        file = tmp_path / "schedule.json"
        file.write_text(json.dumps(schedule))
        refused(readers(file, tmp_path)[reader], "step 0 reuses mid_block", capsys)

    def test_unknown_field(self, reader, schedule, tmp_path, capsys):
        file = tmp_path / "schedule.json"
        file.write_text(json.dumps(schedule | {"speed": 11}))
        refused(readers(file, tmp_path)[reader], "speed", capsys)


def test_show_refuses_a_foreign_document(tmp_path, capsys):
    file = tmp_path / "package.json"
    file.write_text('{"format": "tarball"}')
    refused(["show", file], "format 'tarball'", capsys)


def test_show_refuses_an_empty_folder(tmp_path, capsys):
    refused(["show", tmp_path], "holds none of", capsys)


def test_show_draws_the_schedule(schedule, tmp_path, capsys):
    file, picture = tmp_path / "schedule.json", tmp_path / "picture.svg"
    file.write_text(json.dumps(schedule))
    assert run(["show", str(file), "--out", str(picture)]) == 0
    assert picture.read_text().startswith("<?xml")
    assert "prediction" in capsys.readouterr().out


def test_show_json_holds_the_document(schedule, tmp_path, capsys):
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(schedule))
    assert run(["show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["document"] == schedule


def test_export_refuses_a_schedule_for_another_model(schedule, tmp_path, capsys):
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(schedule))
    refused(["export", "digits-unet", "--schedule", file, "--out", tmp_path / "bundle"], "model", capsys)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("command", ["trace", "search"])
def test_a_missing_model_is_refused(command, tmp_path, capsys):
    refused([command, tmp_path / "nothing", "--out", tmp_path / "out"], "nothing", capsys)


@pytest.mark.parametrize("command", ["verify", "generate", "bench"])
def test_a_missing_bundle_is_refused(command, tmp_path, capsys):
    refused([command, tmp_path / "nothing"], "nothing", capsys)

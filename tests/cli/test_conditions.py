from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from dipgo_deploy.cli.conditions import Conditions, read_conditions
from dipgo_deploy.cli.main import run
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_schedule
from tests.cli.refusal import refused
from tests.models.pipelines import text_pipeline


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3\n\n 7 \n", Conditions((3, 7))),
        ("\ufeff3\r\n4", Conditions((3, 4))),
        ("a cat\na dog\n", Conditions((), ("a cat", "a dog"))),
        ("7\na cat", Conditions((), ("7", "a cat"))),
        ("1234567890", Conditions((), ("1234567890",))),
        ("²", Conditions((), ("²",))),
        ("-1", Conditions((), ("-1",))),
    ],
)
def test_lines_are_classes_if_all_of_them_are_numbers(text, found, tmp_path):
    (tmp_path / "file.txt").write_text(text, encoding="utf-8")
    assert read_conditions(tmp_path / "file.txt") == found


def test_no_file_and_a_file_of_nothing(tmp_path):
    assert read_conditions(None) == Conditions()
    (tmp_path / "file.txt").write_text(" \n\n")
    with pytest.raises(InputError, match="contains neither a class number nor a prompt: give one per line"):
        read_conditions(tmp_path / "file.txt")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="prompts are encoded by transformers")
    return text_pipeline(tmp_path_factory.mktemp("conditions") / "model")


def search(pipeline: Path, folder: Path, prompts: str | None, *options: object) -> list[object]:
    """A search of four steps under guidance."""
    if prompts is not None:
        (folder / "prompts.txt").write_text(prompts)
        options = (*options, "--conditions", folder / "prompts.txt")
    asked = ["--steps", 4, "--ratio", 0.4, "--guidance-layout", "concat", "--out", folder / "s.json"]
    images = [] if "--from-pruner" in options else ["--images", 2]
    return ["search", pipeline, *asked, *images, *options]


def words(arguments: list[object]) -> list[str]:
    return [str(argument) for argument in arguments]


def test_a_search_on_two_prompts(pipeline, tmp_path, capsys, monkeypatch):
    from dipgo_deploy.models import LoadedModel

    given, conditioning = [], LoadedModel.conditioning

    def watched(self, classes, guidance):
        given.append((list(classes), conditioning(self, classes, guidance)))
        return given[-1][1]

    monkeypatch.setattr(LoadedModel, "conditioning", watched)
    asked = search(pipeline, tmp_path, "a cat\na dog", "--method", "best-random", "--candidates", 2, "--json")
    assert run(words(asked)) == 0
    summary = json.loads(capsys.readouterr().out)
    schedule = load_schedule(tmp_path / "s.json")
    assert schedule.contract.sampler.calls == 4 and abs(summary["ratio"] - 0.4) < 0.2
    [(labels, rows)] = given
    assert labels == [0, 1] and rows["encoder_hidden_states"].shape == (4, 16, 8)


def test_a_pruner_knows_its_prompts(pipeline, tmp_path, capsys, monkeypatch):
    from dipgo_deploy.models import with_prompts
    from dipgo_deploy.search.dipgo.pruner_file import read_record

    dipgo = ("--method", "dipgo", "--iterations", 1, "--polish", 0)
    assert run(words(search(pipeline, tmp_path, "a cat", *dipgo))) == 0
    record = read_record(tmp_path / "s.pruner")
    assert (record.prompts, record.classes) == (("a cat",), ())
    capsys.readouterr()
    other = search(pipeline, tmp_path, "a dog", *dipgo, "--force")
    refused(other, "another prompts (('a cat',), not ('a dog',))", capsys)
    cut = ("--method", "dipgo", "--from-pruner", tmp_path / "s.pruner")
    refused(search(pipeline, tmp_path, "a cat", *cut), "belongs to training", capsys, 2)
    encode = Mock(wraps=with_prompts)
    monkeypatch.setattr("dipgo_deploy.search.run.with_prompts", encode)
    assert run(words(search(pipeline, tmp_path, None, *cut, "--force"))) == 0
    assert encode.call_args.args[1] == ("a cat",)

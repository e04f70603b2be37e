from __future__ import annotations

import json

import pytest

from dipgo_deploy.cli.options import patterns_of
from dipgo_deploy.cli.terminal import emit, result, working
from dipgo_deploy.core.errors import UsageError


def test_what_libraries_print_meanwhile_goes_to_stderr(capsys):
    with working("measuring"):
        print("a library talks")
    result("done")
    captured = capsys.readouterr()
    assert captured.out == "done\n"
    assert captured.err == "measuring …\na library talks\n"


def test_results_are_not_read_as_markup(capsys):
    result("[bold] is not a tag")
    assert capsys.readouterr().out == "[bold] is not a tag\n"


def test_a_document_is_one_line_with_its_version_first(capsys):
    emit({"a": [1, "two"]})
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.startswith('{"schema_version": ')
    assert json.loads(line)["a"] == [1, "two"]


def test_a_document_may_carry_its_own_version(capsys):
    emit({"schema_version": "7.1"})
    assert json.loads(capsys.readouterr().out) == {"schema_version": "7.1"}


def test_numbers_that_json_lacks_become_null(capsys):
    emit({"psnr": {"p10": float("inf"), "p50": 30.5}, "rows": (float("nan"), 1, "x", True)})
    document = json.loads(capsys.readouterr().out)
    assert document["psnr"] == {"p10": None, "p50": 30.5}
    assert document["rows"] == [None, 1, "x", True]


def test_patterns_are_split_at_commas():
    assert patterns_of(None) is None
    assert patterns_of("down_blocks.*, mid_block") == ("down_blocks.*", "mid_block")
    with pytest.raises(UsageError, match="empty pattern"):
        patterns_of("a,")

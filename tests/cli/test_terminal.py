from __future__ import annotations

import json
import re

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dipgo_deploy.cli.options import patterns_of
from dipgo_deploy.cli.schedule_view import schedule_view
from dipgo_deploy.cli.terminal import emit, result, working
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from tests.search.graphs import contract_of, unet_like


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


def wide_table() -> Table:
    table = Table()
    table.add_column("name")
    for heading in "abcdef":
        table.add_column(heading * 12, justify="right", no_wrap=True)
    table.add_row("first", *(f"{value:012d}" for value in range(6)))
    table.add_row("second", *(f"{value:012d}" for value in range(6, 12)))
    return table


def test_a_pipe_gets_plain_text_in_aligned_columns(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    result(Group(Text("a title"), wide_table()))
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title == "a title" and not re.search(r"[\u2500-\u257f|+\x1b]", head + first + second)
    assert len(first) == len(second) == len(head) and head.index("b" * 12) == first.index(f"{1:012d}")


def test_a_table_that_is_too_wide_is_divided_and_nothing_is_cut_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    result(wide_table())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60 and "…" not in "".join(lines)
    words = " ".join(lines).split()
    assert all(words.count(f"{value:012d}") == 1 for value in range(12)) and words.count("second") == 2


@pytest.mark.parametrize("width", [40, 60])
def test_a_schedule_is_divided_by_the_width_of_the_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    graph = unet_like()
    result(schedule_view(schedule_by_rule(graph, contract_of(graph, 50), SearchOptions("uniform", 0.8)), graph))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert sum(len(line.split()[1]) for line in lines if line.startswith("mid ")) == 50


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

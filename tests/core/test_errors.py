from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import first_line


@pytest.mark.parametrize(
    ("words", "line"), [("\n one\ntwo", "one"), ("one.", "one"), (" \n", "ValueError"), ("", "ValueError")]
)
def test_the_first_line_of_what_an_error_says(words: str, line: str) -> None:
    assert first_line(ValueError(words)) == line

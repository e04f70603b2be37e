"""Every pipeline class of diffusers works or is refused early, as the page of the documentation says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.every_call import rows
from tests.pipeline.every_page import PAGE, SECTIONS, Result, listed, page
from tests.pipeline.every_pipeline import judge

STATES = listed(PAGE.read_text(encoding="utf-8"))
"""States by row. The tests take their rows from here, because importing every pipeline takes seconds."""


def test_the_page_lists_every_class_of_diffusers_that_has_a_denoiser_with_a_preset():
    assert STATES.keys() == {row.name for row in rows()}


def test_a_page_is_read_as_it_was_written_and_has_no_place_for_failures():
    results = [Result("A (1)", "works", "1e-6"), Result("B", "refused", "load: a | b"), Result("C", "not tried", "no")]
    assert listed(page(results, "0.42", 1e-3, 4)) == {"A (1)": "works", "B": "refused", "C": "not tried"}
    with pytest.raises(ValueError, match="no place for failures: D"):
        page([Result("D", "late", "call: no")], "0.42", 1e-3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_a_pipeline_works_or_is_refused_early_as_the_page_says(name: str, tmp_path: Path):
    row = next(row for row in rows() if row.name == name)
    result = judge(row, tmp_path)
    assert result.state in SECTIONS, f"{result.state}: {result.text}"
    assert result.state == STATES[name], result.text

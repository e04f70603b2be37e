"""Every pipeline class of diffusers works or is refused early, as the page of the documentation says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.every_call import Row, rows
from tests.pipeline.every_page import PAGE, SECTIONS, listed
from tests.pipeline.every_pipeline import judge


def test_the_page_lists_every_class_of_diffusers_that_has_a_denoiser_with_a_preset():
    assert set(listed(PAGE.read_text(encoding="utf-8"))) == {row.name for row in rows()}


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_pipeline_works_or_is_refused_early_as_the_page_says(row: Row, tmp_path: Path):
    result = judge(row, tmp_path)
    assert result.state in SECTIONS, f"{result.state}: {result.text}"
    assert result.state == listed(PAGE.read_text(encoding="utf-8"))[row.name], result.text

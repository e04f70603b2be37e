"""The drawings that are kept are those that the script draws from the present code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dipgo_deploy.core.files import load_schedule

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def drawings():
    spec = importlib.util.spec_from_file_location("drawings", DOCS / "drawings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_diagram_is_up_to_date(drawings, traced):
    traced("digits-unet", "stage")
    lowered = drawings.Lowered(load_schedule(DOCS / "pictures" / "six-steps.json"))
    stale = []
    for name, draw in drawings.DIAGRAMS.items():
        svg, height = draw(lowered)
        if svg.document(height) != (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8"):
            stale.append(name)
    assert stale == [], "run python docs/drawings.py"

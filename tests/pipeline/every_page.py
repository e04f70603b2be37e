"""The page of the documentation that lists what works, made from the results of every row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGE", "SECTIONS", "Result", "listed", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "what-works.md"

SECTIONS: Mapping[str, str] = {"works": "Works", "refused": "Refused", "not tried": "Not tried"}
"""Headings of the page by the state of their rows. Other states are failures, and have no heading."""

_HEAD = """# What works

Every pipeline class of diffusers {version} whose denoiser has a preset, by the annotations of its constructor. Rows in
parentheses are other checkpoints of the same class.

A row works if the deployed pipeline equals plain diffusers on ONNX Runtime: the predictions of its denoiser and its
output deviate by at most {tolerance:g} of the largest value. The model is tiny, with random weights, and the schedule
computes every block. The call has the defaults of its class, apart from {steps} steps and small sizes.

A row is refused if loading the folder, making the contract or tracing ends in the message that is quoted. No later
stage fails.

`python -m tests.pipeline.every_pipeline --write` makes this page.
"""


@dataclass(frozen=True)
class Result:
    """What a row came to.

    Attributes:
        row: the row's name.
        state: ``works``, ``refused``, ``not tried``, or a kind of failure: ``unclean`` (a refusal that does not say
            what to do), ``late`` (a refusal after export), ``raw`` (an exception), ``different`` (other images).
        text: the refusal, the failure or the largest deviation.
        seconds: time taken.
    """

    row: str
    state: str
    text: str
    seconds: float = 0.0


def page(results: Sequence[Result], version: str, tolerance: float, steps: int) -> str:
    """The page. Raises ValueError if a row fails."""
    if failed := [result.row for result in results if result.state not in SECTIONS]:
        raise ValueError(f"the page has no place for failures: {', '.join(failed)}")
    parts = [_HEAD.format(version=version, tolerance=tolerance, steps=steps)]
    for state, heading in SECTIONS.items():
        rows = [result for result in results if result.state == state]
        body = _names(rows) if state == "works" else _reasons(rows)
        parts.append(f"## {heading}: {len(rows)}\n\n{body}")
    return "\n".join(parts)


def _names(rows: Sequence[Result]) -> str:
    return "".join(f"- `{result.row}`\n" for result in rows)


def _reasons(rows: Sequence[Result]) -> str:
    lines = [f"| `{result.row}` | {_cell(result.text)} |\n" for result in rows]
    return "".join(["| Pipeline | Stage: message |\n", "| --- | --- |\n", *lines])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def listed(text: str) -> dict[str, str]:
    """The state of every row of a page, by the row's name."""
    states: dict[str, str] = {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        state = next(state for state, heading in SECTIONS.items() if section.startswith(heading))
        states |= dict.fromkeys(re.findall(r"^(?:- |\| )`([^`]+)`", section, flags=re.M), state)
    return states

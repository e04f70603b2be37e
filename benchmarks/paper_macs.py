"""Our multiply-accumulates next to the published figures, with convention and guidance factor of each.

Every architecture is built from its shipped config on the meta device (MACs do not depend on weights) and traced, so
the figures are those of the graphs that run. Writes ``benchmarks/results/paper_macs.json`` after each architecture.
Architectures in that file are not counted again. ``--table`` prints the file as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from published_macs import FIGURES, SETTINGS, Figure, Setting
from published_schedule import TABLE
from resumable import completed

from dipgo_deploy.core.blocks import ZERO_MACS, BlockGraph, Kind, Macs
from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.liveness import plan_steps
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, load_random, make_contract
from dipgo_deploy.search import SearchOptions, method_options, schedule_by_rule
from dipgo_deploy.search.interchange import FORMATS, import_schedule

RESULTS = Path(__file__).parent / "results" / "paper_macs.json"
TOLERANCE = 0.005
"""A larger difference from the published figure needs a reason in its note."""


@dataclass(frozen=True)
class Cell:
    """One architecture, which is counted and written at a time."""

    architecture: str


@cache
def model_of(architecture: str) -> LoadedModel:
    """The architecture without weights."""
    return load_random(architecture, device="meta")


@cache
def graph_of(architecture: str, granularity: str) -> BlockGraph:
    """The blocks of an architecture."""
    return trace(model_of(architecture), granularity=granularity).blocks


def counted(figure: Figure) -> tuple[Macs, int]:
    """MACs of one row over all network calls of a figure, and how many calls there are."""
    if figure.schedule is not None:
        return scheduled(figure.architecture, SETTINGS[figure.schedule], figure.step)
    graph = graph_of(figure.architecture, "stage")
    macs = graph.macs if figure.block is None else graph.block_of_name[figure.block].macs
    return Macs(macs.papers * figure.calls, macs.full * figure.calls), figure.calls


def _options(method: str, ratio: float, kind: Kind = "output", **knobs: int) -> SearchOptions:
    return SearchOptions(method, ratio, kind, settings=method_options(method, **dict[str, Any](knobs)))


def scheduled(architecture: str, setting: Setting, step: int | None) -> tuple[Macs, int]:
    """MACs and calls of a schedule, as a whole or at one step."""
    rule = setting.form == "rule"
    graph = graph_of(architecture, "stage" if rule else FORMATS[setting.form].granularity)
    contract = make_contract(model_of(architecture), sampler=setting.sampler, steps=setting.steps)
    if rule:
        schedule = schedule_by_rule(graph, contract, _options(**setting.settings))
    else:
        schedule = import_schedule(setting.form, setting.settings or read_json(TABLE), graph, contract)
    plans = [plan for plan in plan_steps(schedule, graph) if plan.is_call and step in (None, plan.step)]
    costs = [graph.cost(graph.pieces[index] for index in plan.reach.pieces) for plan in plans]
    return sum(costs, ZERO_MACS), len(plans)


def measure(cell: Cell) -> dict[str, Any]:
    """Every figure of an architecture."""
    return {"figures": [figure_row(figure) for figure in FIGURES if figure.architecture == cell.architecture]}


def figure_row(figure: Figure) -> dict[str, Any]:
    """A figure as the document holds it; MACs in G."""
    macs, calls = counted(figure)
    ours = getattr(macs, figure.convention) * figure.rows
    difference = None if figure.published is None else ours / figure.published - 1
    if difference is not None and abs(difference) > TOLERANCE and not figure.note:
        raise AssertionError(
            f"{figure.architecture}, {figure.what}: {difference:+.2%} from published, without a reason"
        )
    return {
        "figure": figure.what,
        "published_giga_macs": None if figure.published is None else figure.published / 1e9,
        "our_giga_macs": ours / 1e9,
        "difference": difference,
        "agrees": None if difference is None else abs(difference) <= TOLERANCE,
        "convention": figure.convention,
        "guidance_factor": figure.rows,
        "network_calls": calls,
        "source": figure.source,
        "note": figure.note,
    }


def table(cells: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The figures as Markdown, without notes."""
    yield "| architecture | figure | published | ours | difference | convention | guidance factor | calls |"
    yield "|---|---|---|---|---|---|---|---|"
    for architecture, figure in ((cell["architecture"], figure) for cell in cells for figure in cell["figures"]):
        is_published = figure["difference"] is not None
        published = giga_text(figure["published_giga_macs"]) if is_published else ""
        difference = f"{figure['difference']:+.2%}" if is_published else ""
        counting = [figure["convention"], str(figure["guidance_factor"]), str(figure["network_calls"])]
        columns = [architecture, figure["figure"], published, giga_text(figure["our_giga_macs"]), difference, *counting]
        yield f"| {' | '.join(columns)} |"


def giga_text(giga: float) -> str:
    """G or T with two decimals."""
    return f"{giga / 1e3:.2f} T" if giga >= 3000 else f"{giga:.2f} G"


def main() -> None:
    """Count every figure that is missing, or print the table."""
    known = list(dict.fromkeys(figure.architecture for figure in FIGURES))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="architectures; all if left out")
    parser.add_argument("--table", action="store_true", help="print the tracked results as Markdown, count nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        for row in completed(RESULTS, map(Cell, arguments.only), measure):
            print(f"{row['architecture']}: {len(row['figures'])} figures", file=sys.stderr, flush=True)
    print("\n".join(table(read_json(RESULTS)["cells"])))


if __name__ == "__main__":
    main()

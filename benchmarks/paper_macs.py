"""Our multiply-accumulates beside the published ones, with convention and guidance factor of each.

Every architecture is built from its shipped config on the meta device (MACs do not depend on weights) and traced, so
that the figures are those of the graphs that run. Writes ``benchmarks/results/paper_macs.json`` after each one; those
that stand in it are not counted again. ``--table`` prints it as Markdown.
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
    """What is counted, and written, at a time."""

    architecture: str


@cache
def model_of(architecture: str) -> LoadedModel:
    """The architecture without weights."""
    return load_random(architecture, device="meta")


@cache
def graph_of(architecture: str, granularity: str) -> BlockGraph:
    """Its blocks."""
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
    """The same of a schedule, whole or at one step."""
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


def measured(cell: Cell) -> dict[str, Any]:
    """Every figure of an architecture."""
    return {"figures": [row(figure) for figure in FIGURES if figure.architecture == cell.architecture]}


def row(figure: Figure) -> dict[str, Any]:
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
    for architecture, one in ((cell["architecture"], figure) for cell in cells for figure in cell["figures"]):
        known = one["difference"] is not None
        published = giga_text(one["published_giga_macs"]) if known else ""
        difference = f"{one['difference']:+.2%}" if known else ""
        counted = [one["convention"], str(one["guidance_factor"]), str(one["network_calls"])]
        found = [architecture, one["figure"], published, giga_text(one["our_giga_macs"]), difference, *counted]
        yield f"| {' | '.join(found)} |"


def giga_text(giga: float) -> str:
    """G or T with two digits behind the point."""
    return f"{giga / 1e3:.2f} T" if giga >= 3000 else f"{giga:.2f} G"


def main() -> None:
    """Count every figure that is missing, or print the table."""
    known = list(dict.fromkeys(figure.architecture for figure in FIGURES))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="architectures; all if left out")
    parser.add_argument("--table", action="store_true", help="print the tracked results as Markdown, count nothing")
    given = parser.parse_args()
    if not given.table:
        for found in completed(RESULTS, map(Cell, given.only), measured):
            print(f"{found['architecture']}: {len(found['figures'])} figures", file=sys.stderr, flush=True)
    print("\n".join(table(read_json(RESULTS)["cells"])))


if __name__ == "__main__":
    main()

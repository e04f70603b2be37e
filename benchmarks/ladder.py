"""The wide ladder: every fast path against the slower one below it, on random schedules of whole trajectories.

A cell is a model, a granularity, a kind of reuse and a guidance layout; its schedules take samplers in turn. Models are
the reference models, or, with ``--families``, the tiny model of every family that the tests hold. Each schedule goes
through a bundle of the segments layout, whose verification climbs both layouts: subnets against torch, then segments
against subnets. The worst local and free-running deviation of every rung is kept. Cells that stand in the results file
with as many schedules and steps are not run again, so an interrupted run continues. Exit code 4 where a rung broke.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from resumable import Row, completed

sys.path.append(str(Path(__file__).parents[1]))  # The tiny models stand among the tests, which nobody installs.

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.core.blocks import Kind
from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.errors import GateError
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import PRESETS, REFERENCE_MODELS, LoadedModel, load_model, make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.verify import VerifyOptions, VerifyReport, verify_bundle
from tests.models.families import FAMILIES, tiny

RESULTS = Path(__file__).parent / "results" / "ladder.json"
SAMPLERS = ("ddim", "dpmpp-2m", "unipc", "pndm")
FLOW = ("sd3", "flux", "wan")
"""Families whose networks predict a velocity: they take samplers of flow matching."""

FLOW_SAMPLERS = ("flow-euler",)
DISTILLED = ("flux",)
"""Families that take the guidance scale as an input: they have no unconditional rows."""

KEEP = 0.5
"""Probability that a block is computed at a step."""


@dataclass(frozen=True)
class Cell:
    """What a row of the results is about."""

    model: str
    granularity: str
    kind: Kind
    guidance: Guidance
    schedules: int
    steps: int


def cells(models: Iterable[str], schedules: int, steps: int) -> Iterator[Cell]:
    """Every model × granularity × kind × guidance; kinds only where a block has a residual."""
    for name in models:
        model = model_of(name)
        for granularity in PRESETS[model.class_name].granularities:
            blocks = trace(model, granularity=granularity).blocks.blocks
            has_residual = any(block.residual_input is not None for block in blocks)
            kinds: tuple[Kind, ...] = ("output", "residual") if has_residual else ("output",)
            guidances: tuple[Guidance, ...] = ("none",) if name in DISTILLED else ("none", "concat")
            for kind, guidance in product(kinds, guidances):
                yield Cell(name, granularity, kind, guidance, schedules, steps)


@cache
def model_of(name: str) -> LoadedModel:
    """A reference model or a family's tiny one."""
    return tiny(name) if name in FAMILIES else load_model(name)


def climb(cell: Cell) -> Row:
    """Verify the cell's schedules; the worst of each rung, and the first failure in words."""
    started, model = time.monotonic(), model_of(cell.model)
    rungs: dict[str, dict[str, float | None]] = {}
    failures = []
    for seed in range(cell.schedules):
        report = verify_random(model, cell, seed)
        failures += [f"seed {seed}: {report.failure}"] if report.failure else []
        for rung in report.rungs:
            worst = rungs.setdefault(rung.name, {"local": None, "free": 0.0})
            worst["free"] = finite(max(worst["free"] or 0.0, rung.free))
            if rung.local is not None:
                worst["local"] = finite(max(worst["local"] or 0.0, rung.local.relative))
    return {
        "passed": not failures,
        "failure": failures[0] if failures else "",
        "rungs": rungs,
        "seconds": round(time.monotonic() - started, 1),
    }


def verify_random(model: LoadedModel, cell: Cell, seed: int) -> VerifyReport:
    """Verify the bundle of one random schedule, in a folder that is gone afterwards."""
    samplers = FLOW_SAMPLERS if cell.model in FLOW else SAMPLERS
    contract = make_contract(model, sampler=samplers[seed % len(samplers)], steps=cell.steps, guidance=cell.guidance)
    blocks = trace(model, granularity=cell.granularity).blocks
    schedule = random_schedule(blocks, contract, cell.kind, np.random.default_rng(seed), KEEP)
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(export(model, schedule, Path(folder) / "bundle", ExportOptions("segments")))
        return verify_bundle(bundle, VerifyOptions(images=2))


def finite(value: float) -> float:
    """JSON knows no infinity: what is not finite counts as 1e30."""
    return min(value, 1e30)


def main() -> None:
    """Parse options, run what is missing, write after every cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", action="store_true", help="the tiny model of every family")
    parser.add_argument("--model", choices=[*REFERENCE_MODELS, *FAMILIES], help="one model; runs may share the file")
    parser.add_argument("--schedules", type=int, default=10, help="random schedules of a cell")
    parser.add_argument("--steps", type=int, default=50, help="network calls of the full run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results, continued where it stands")
    given = parser.parse_args()
    models: Iterable[str] = [given.model] if given.model else FAMILIES if given.families else REFERENCE_MODELS
    failed = []
    for row in completed(given.out, cells(models, given.schedules, given.steps), climb):
        print(json.dumps(row), flush=True)
        failed += [] if row["passed"] else [row["failure"]]
    if failed:
        print(f"{len(failed)} cells failed, the first: {failed[0]}", file=sys.stderr)
        sys.exit(GateError.exit_code)


if __name__ == "__main__":
    main()

"""The wide ladder: every fast path against the slower one below it, on random schedules of whole trajectories.

A cell is a model, a granularity, a kind of reuse and a guidance layout. Its schedules take samplers in turn. Models are
the reference models, or with ``--families`` the tiny model of every family in the tests. Each schedule is exported in
layout segments, so the verification covers both layouts: subnets against torch, then segments against subnets. The
worst local and free-running deviation of every rung is kept. Cells in the results file with as many schedules and steps
are not run again, so an interrupted run continues. The exit code is 4 if a rung fails.
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

sys.path.append(str(Path(__file__).parents[1]))  # The tiny models are part of the tests, which are not installed.

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
"""Families whose networks predict a velocity. They take samplers of flow matching."""

FLOW_SAMPLERS = ("flow-euler",)
DISTILLED = ("flux",)
"""Families with the guidance scale as an input. They have no unconditional rows."""

KEEP = 0.5
"""Probability that a block is computed at a step."""


@dataclass(frozen=True)
class Cell:
    """The settings of a row of the results."""

    model: str
    granularity: str
    kind: Kind
    guidance: Guidance
    schedules: int
    steps: int


def cells(models: Iterable[str], schedules: int, steps: int) -> Iterator[Cell]:
    """Every model × granularity × kind × guidance. Kind residual needs a block with a residual."""
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
    """Verify the cell's schedules. Keeps the worst deviation of each rung, and the first failure."""
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
    """Verify the bundle of one random schedule, in a temporary folder."""
    samplers = FLOW_SAMPLERS if cell.model in FLOW else SAMPLERS
    contract = make_contract(model, sampler=samplers[seed % len(samplers)], steps=cell.steps, guidance=cell.guidance)
    blocks = trace(model, granularity=cell.granularity).blocks
    schedule = random_schedule(blocks, contract, cell.kind, np.random.default_rng(seed), KEEP)
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(export(model, schedule, Path(folder) / "bundle", ExportOptions("segments")))
        return verify_bundle(bundle, VerifyOptions(images=2))


def finite(value: float) -> float:
    """A value for JSON, which has no infinity: at most 1e30."""
    return min(value, 1e30)


def main() -> None:
    """Parse options, and run the missing cells. Results are written after every cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", action="store_true", help="the tiny model of every family")
    parser.add_argument("--model", choices=[*REFERENCE_MODELS, *FAMILIES], help="one model; runs may share the file")
    parser.add_argument("--schedules", type=int, default=10, help="random schedules of a cell")
    parser.add_argument("--steps", type=int, default=50, help="network calls of the full run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results, continued if it exists")
    arguments = parser.parse_args()
    models = [arguments.model] if arguments.model else FAMILIES if arguments.families else REFERENCE_MODELS
    failed = []
    for row in completed(arguments.out, cells(models, arguments.schedules, arguments.steps), climb):
        print(json.dumps(row), flush=True)
        failed += [] if row["passed"] else [row["failure"]]
    if failed:
        print(f"{len(failed)} cells failed, the first: {failed[0]}", file=sys.stderr)
        sys.exit(GateError.exit_code)


if __name__ == "__main__":
    main()

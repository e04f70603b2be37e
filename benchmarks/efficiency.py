"""Efficiency of schedules on ONNX Runtime by granularity: the share of the pruned arithmetic that becomes time.

Efficiency is speed-up over the ratio of MACs (``full`` convention) of the graph nodes that run. Each shipped model has
the uniform schedule of whole steps at ratio 0.8, and random ``layer`` and ``branch`` schedules at half the MACs. Each
schedule is timed in turns with the full run of its model, next to the A/A ratio of the full run. Writes
``benchmarks/results/efficiency.json``. The last line printed is that document.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dipgo_deploy.bench.contenders import FullNetwork
from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.timing import Stopwatch, time_rounds
from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import PRESETS, REFERENCE_MODELS, load_model, make_contract
from dipgo_deploy.runtime.environment import environment
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.open import open_session
from dipgo_deploy.search import SearchOptions, schedule_by_rule

RESULTS = Path(__file__).parent / "results" / "efficiency.json"


@dataclass(frozen=True)
class Cell:
    """A model, a granularity and the searches whose schedules are timed."""

    model: str
    granularity: str
    searches: tuple[SearchOptions, ...]


def cells(schedules: int) -> Iterator[Cell]:
    """All cells, with ``schedules`` random schedules at each granularity finer than stages."""
    for model in REFERENCE_MODELS:
        known = PRESETS[load_model(model).class_name].granularities
        yield Cell(model, "stage", (SearchOptions("uniform", 0.8),))
        for granularity in ("layer", "branch"):
            if granularity in known:
                searches = (SearchOptions("random", 0.5, seed=seed) for seed in range(schedules))
                yield Cell(model, granularity, tuple(searches))


def measure(cell: Cell, steps: int, rounds: int, options: BenchOptions) -> dict[str, Any]:
    """Efficiency of every schedule of ``cell``, with median and worst."""
    model = load_model(cell.model)
    contract, blocks = make_contract(model, steps=steps), trace(model, granularity=cell.granularity).blocks
    schedules = [schedule_by_rule(blocks, contract, search) for search in cell.searches]
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(export(model, schedules[0], Path(folder) / "bundle"))
        network = FullNetwork(bundle, options)
        rows = [time_schedule(network, schedule, rounds) for schedule in schedules]
    efficiencies = [row["efficiency"] for row in rows]
    return {
        "model": cell.model,
        "granularity": cell.granularity,
        "method": cell.searches[0].method,
        "ratio": cell.searches[0].ratio,
        "median": statistics.median(efficiencies),
        "worst": min(efficiencies),
        "schedules": rows,
    }


def time_schedule(network: FullNetwork, schedule: Schedule, rounds: int) -> dict[str, Any]:
    """One schedule against the full run, interleaved."""
    bundle, options = network.bundle, network.options
    full = network.full().session
    scale, compiled = network.guidance_scale, bundle.compile(schedule)
    own = open_session(bundle, options.batch, options.run, guidance_scale=scale, compiled=compiled)
    inputs = run_inputs(bundle.model, bundle.manifest.contract, range(options.batch))
    acts = {"full": partial(full.run, *inputs), "schedule": partial(own.run, *inputs)}
    watch = Stopwatch("full")
    for measured in time_rounds(acts, "full", rounds, options.seed):
        watch.add(measured)
    speedup, macs_ratio = watch.speedup("schedule"), full.program.macs.full / own.program.macs.full
    return {
        "seed": schedule.origin["seed"],
        "pruned_ratio": pruned_ratio(schedule, bundle.blocks),
        "nfe": own.program.nfe,
        "graphs": len(own.program.graphs),
        "latency_ms": watch.latency_ms("schedule"),
        "full_latency_ms": watch.latency_ms("full"),
        "speedup": speedup,
        "efficiency": speedup / macs_ratio,
        "aa_ratio": watch.aa_ratio,
    }


def main() -> None:
    """Parse options, measure every cell, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedules", type=int, default=10, help="random schedules of a granularity")
    parser.add_argument("--steps", type=int, default=50, help="network calls of the full run")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds of a schedule")
    parser.add_argument("--batch", type=int, default=8, help="images of a run")
    parser.add_argument("--threads", type=int, help="threads of ONNX Runtime; its own choice if left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results")
    arguments = parser.parse_args()
    options = BenchOptions(batch=arguments.batch, run=RunOptions(threads=arguments.threads))
    rows = []
    for cell in cells(arguments.schedules):
        rows.append(measure(cell, arguments.steps, arguments.rounds, options))
        summary = {key: value for key, value in rows[-1].items() if key != "schedules"}
        print(json.dumps(summary), file=sys.stderr, flush=True)
    command = shlex.join(["python", "benchmarks/efficiency.py", *sys.argv[1:]])
    document = {"environment": {**environment(), "command": command}, "cells": rows}
    write_atomic(arguments.out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(json.dumps(document, allow_nan=False))


if __name__ == "__main__":
    main()

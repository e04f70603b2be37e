"""Predicted against measured latency of random schedules on ONNX Runtime, in both layouts.

For each model a latency table is fitted to probe programs (dipgo_deploy/engines/profiling.py). The tested schedules are
never among the probes. Probes and schedules are timed in the same rounds, every schedule twice a round. A prediction
holds within 15 %, or within twice the schedule's own A/A noise if that is more. Cells in
``benchmarks/results/planner.json`` are not run again. The last line printed is a summary of all cells.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
from resumable import Row, completed

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.engines.latency_fit import latency_table
from dipgo_deploy.engines.options import ProfileOptions
from dipgo_deploy.engines.probes import probe_programs
from dipgo_deploy.engines.profiling import median_times, time_calls
from dipgo_deploy.graphs import Trace, cut_program, trace
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.lowering.latency import predict_ms
from dipgo_deploy.models import LoadedModel, load_model, make_contract
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.runtime.clock import Clock, HostClock
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.search.random_schedules import random_schedule

RESULTS = Path(__file__).parent / "results" / "planner.json"
TOLERANCE = 0.15
KEEPS = (0.2, 0.8)
"""Range from which each random schedule draws its share of computed entries."""


@dataclass(frozen=True)
class Cell:
    """A model, its granularity and the kind of reuse."""

    model: str
    granularity: str
    kind: Kind


CELLS = {
    "unet-stage": Cell("digits-unet", "stage", "output"),
    "dit-stage": Cell("digits-dit", "stage", "residual"),
    "unet-layer": Cell("digits-unet", "layer", "output"),
    "dit-branch": Cell("digits-dit", "branch", "residual"),
}


class CpuClock(HostClock):
    """CPU time of the process, which other processes disturb less than wall time. Correct for one thread only."""

    def mark(self) -> float:
        """Seconds."""
        return time.process_time()


CLOCKS: dict[str, Clock] = {"wall": HostClock(), "cpu": CpuClock()}


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how often."""

    schedules: int
    steps: int
    rounds: int
    batch: int
    threads: int
    clock: str


def measure(cell: Cell, sizes: Sizes) -> Row:
    """Predictions and measurements of one cell."""
    model = load_model(cell.model)
    traced = trace(model, granularity=cell.granularity)
    options = ProfileOptions(RunOptions(threads=sizes.threads), batch=sizes.batch, rounds=sizes.rounds)
    clock = CLOCKS[sizes.clock]
    probes = [
        Timer(model, traced, program, options, clock)
        for program in probe_programs(
            traced.blocks, make_contract(model, steps=options.steps), get_args(Layout), options.seed
        )
    ]
    schedules = schedules_of(model, traced.blocks, cell.kind, sizes)
    tested = [
        Timer(model, traced, lowered(schedule, traced.blocks, layout), options, clock)
        for schedule in schedules
        for layout in get_args(Layout)
    ]
    started = time.monotonic()
    for done in range(sizes.rounds + 1):
        turns = [*(timer.probe for timer in probes), *(timer.run for timer in tested), *(timer.run for timer in tested)]
        random.Random(done).shuffle(turns)
        for turn in turns:
            turn()
        print(f"{cell.model} round {done} of {sizes.rounds}", file=sys.stderr, flush=True)
    table = latency_table(
        [median_times(timer.session.program, timer.calls_ms[1:]) for timer in probes], traced.blocks, options
    )
    rows = [compare(timer, predict_ms(timer.session.program, traced.blocks, table)) for timer in tested]
    errors = [abs(row["error"]) for row in rows]
    return {
        **asdict(sizes),
        "worst_error": max(errors),
        "median_error": median(errors),
        "holds": all(row["holds"] for row in rows),
        "spread": table.spread,
        "cold_ms_per_mib": table.cold_ms_per_mib,
        "cache_bytes": table.cache_bytes,
        "seconds": time.monotonic() - started,
        "schedules_tested": rows,
    }


def schedules_of(model: LoadedModel, blocks: BlockGraph, kind: Kind, sizes: Sizes) -> list[Schedule]:
    """The full run, then random schedules of different boldness."""
    contract, rng = make_contract(model, steps=sizes.steps), np.random.default_rng(1)
    drawn = [random_schedule(blocks, contract, kind, rng, rng.uniform(*KEEPS)) for _ in range(sizes.schedules)]
    return [full_schedule(contract, blocks.granularity, kind, blocks.block_names), *drawn]


def lowered(schedule: Schedule, blocks: BlockGraph, layout: Layout) -> Program:
    """The schedule's program in one layout."""
    return lower(schedule, blocks, read_sampler(schedule.contract.sampler), LowerOptions(layout=layout))


class Timer:
    """One program on ONNX Runtime, and all times that were taken of it."""

    def __init__(
        self, model: LoadedModel, traced: Trace, program: Program, options: ProfileOptions, clock: Clock
    ) -> None:
        graphs = cut_program(traced.master, program, traced.blocks)
        backend = OnnxRuntimeBackend(graphs, traced.folder, threads=options.run.threads)
        self.clock = clock
        self.session, self.model = Session(program, backend, options.batch), model
        self.inputs = run_inputs(model, program.contract, range(options.batch))
        self.calls_ms: list[list[float]] = []
        self.whole_ms: list[float] = []

    def probe(self) -> None:
        """Time every call once."""
        self.calls_ms.append(time_calls(self.session, self.model, self.clock))

    def run(self) -> None:
        """Time one run."""
        started = self.clock.mark()
        self.session.run(*self.inputs)
        self.whole_ms.append(self.clock.elapsed_ms(started, self.clock.mark()))


def compare(timer: Timer, predicted_ms: float) -> dict[str, Any]:
    """A prediction next to its measurement. The first two runs warm up."""
    program, times = timer.session.program, timer.whole_ms[2:]
    measured, noise = median(times), abs(median(times[::2]) / median(times[1::2]) - 1)
    error = predicted_ms / measured - 1
    return {
        "layout": program.layout,
        "graphs": len(program.graphs),
        "network_calls": len(program.runs),
        "predicted_ms": predicted_ms,
        "measured_ms": measured,
        "error": error,
        "aa_noise": noise,
        "holds": abs(error) <= max(TOLERANCE, 2 * noise),
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Errors of every cell."""
    names = ("model", "granularity", "rounds", "worst_error", "median_error", "holds")
    return {"cells": [{name: row[name] for name in names} for row in rows]}


def main() -> None:
    """Parse options, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=["unet-stage", "dit-stage"])
    parser.add_argument("--schedules", type=int, default=10, help="random schedules of a cell, besides the full run")
    parser.add_argument("--steps", type=int, default=50, help="network calls of the full run")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds")
    parser.add_argument("--batch", type=int, default=8, help="images of a run")
    parser.add_argument("--threads", type=int, default=1, help="threads of ONNX Runtime")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: where other work shares the cores")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results")
    arguments = parser.parse_args()
    sizes = Sizes(
        arguments.schedules,
        arguments.steps,
        arguments.rounds,
        arguments.batch,
        arguments.threads,
        arguments.clock,
    )
    cells = [CELLS[name] for name in arguments.cells]
    rows = list(completed(arguments.out, cells, lambda cell: measure(cell, sizes)))
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()

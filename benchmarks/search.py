"""Searches compared: schedules of every method, model and ratio, measured on noise that no search has seen.

A cell is a model, a granularity, a kind, a method with its settings, a search seed and a ratio. Its schedule is run on
the live model from seeds of its own. Percentiles of the PSNR to the full and to the converged run are kept, with a
bootstrap interval of the median and the cost of the search. Cells in the results file are not run again, and
pruners are kept under benchmarks/pruners, so an interrupted study goes on where it stopped. Several processes may share
the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resumable import Row, completed

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.metrics import median_interval, percentiles, psnr_db
from dipgo_deploy.core.progress import Progress, finish
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, load_model, make_contract
from dipgo_deploy.models.sampler_variants import PLAIN_SAMPLERS, Variant, variants
from dipgo_deploy.search import RULES, DipgoOptions, SearchOptions, schedule_by_rule, search
from dipgo_deploy.search.calibration import Calibration, calibrate, images_of
from dipgo_deploy.search.dipgo.options import PRESETS
from dipgo_deploy.search.evaluator import Evaluator
from dipgo_deploy.search.problem import schedule_of
from dipgo_deploy.search.run import evaluated

EVALUATED = ("best-random", "evolutionary", "dpcache")
"""Methods that evaluate schedules by their images, without gradients."""

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "search.json"
PRUNERS = HERE / "pruners"
MEASURED_SEEDS = range(1000, 1064)
SEARCH_IMAGES = 8
SHOWN = ("case", "method", "seed", "ratio", "reached", "psnr_full_db", "seconds")
RATIOS = (0.5, 0.6, 0.7, 0.8, 0.85)
CASES: dict[str, tuple[str, str, Kind]] = {
    "unet-stage": ("digits-unet", "stage", "output"),
    "unet-layer": ("digits-unet", "layer", "output"),
    "dit-stage": ("digits-dit", "stage", "residual"),
    "dit-branch": ("digits-dit", "branch", "residual"),
}
GRADIENT: dict[str, DipgoOptions] = {
    "dipgo": PRESETS["default"],
    "dipgo-unpolished": replace(PRESETS["default"], polish=0),
    "dipgo-paper": PRESETS["paper"],  # For a DiT, its variant.
    "polish-alone": replace(PRESETS["default"], iterations=1),
}
"""Gradient searches by name. ``polish-alone`` trains for one step only: exchanges from evenly spread steps."""

PLAIN = tuple(f"plain:{name}" for name in PLAIN_SAMPLERS)
"""Samplers without reuse, at as many calls as the ratio leaves."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear-encoder": {"encoder": "linear"},
    "no-encoder": {"encoder": "none"},
    "own-cost": {"cost": "own"},
    "equal-cost": {"cost": "equal"},
    "l1": {"loss": "l1"},
    "l2": {"loss": "l2"},
    "no-floor": {"floor": 0.0},
}
"""Changes to the paper's settings, one at a time."""

ABLATION_POOL = 64
"""Images that every ablation, ``none`` too, trains on in turn: a full run for each iteration would double the cost."""


@dataclass(frozen=True)
class Cell:
    """The subject of one row of the results."""

    case: str
    method: str
    seed: int
    ratio: float


@dataclass(frozen=True)
class Case:
    """A model, with the runs that its schedules are compared with."""

    name: str
    model: LoadedModel
    graph: BlockGraph
    contract: Contract
    kind: Kind
    reference: Calibration
    converged: np.ndarray


@cache
def case_of(name: str, steps: int) -> Case:
    """Load, trace and run in full once."""
    source, granularity, kind = CASES[name]
    model = load_model(source)
    graph = trace(model, granularity=granularity).blocks
    contract = make_contract(model, sampler="ddim", steps=steps, guidance="none")
    reference = calibrate(model, graph, contract, MEASURED_SEEDS)
    return Case(name, model, graph, contract, kind, reference, _converged(model, graph, reference))


def _converged(model: LoadedModel, graph: BlockGraph, reference: Calibration) -> np.ndarray:
    """DDIM with 1000 calls from the same noise, kept on disk."""
    path = PRUNERS / f"converged-{model.digest[:16]}.npy"
    if not path.is_file():
        long = make_contract(model, sampler="ddim", steps=1000, guidance="none")
        full = full_schedule(long, graph.granularity, "output", graph.block_names)
        PRUNERS.mkdir(exist_ok=True)
        np.save(path, images_of(replace(reference, contract=long), full))
    images: np.ndarray = np.load(path)
    return images


def options_of(method: str, case: str) -> DipgoOptions | None:
    """Settings of a gradient search by its name, ``ablation:NAME`` included; ``NAME@N`` trains for N iterations."""
    method, _, iterations = method.partition("@")
    if iterations:
        options = options_of(method, case)
        return options and replace(options, iterations=int(iterations))
    paper = PRESETS["paper-dit" if CASES[case][0] == "digits-dit" else "paper"]
    if method.startswith("ablation:"):
        return replace(paper, pool=ABLATION_POOL, **ABLATIONS[method.removeprefix("ablation:")])
    return paper if method == "dipgo-paper" else GRADIENT.get(method)


def searched(case: Case, cell: Cell) -> Schedule:
    """The cell's schedule."""
    settings = options_of(cell.method, cell.case)
    if settings is not None:
        return _by_gradient(case, cell, settings)
    if cell.method in PLAIN:
        return _plain(case, cell)
    options = SearchOptions(cell.method, cell.ratio, case.kind, cell.seed)
    if cell.method in RULES:
        return schedule_by_rule(case.graph, case.contract, options)
    # Every search seed has images of its own, so that the spread over seeds covers the choice of images.
    seeds = range(SEARCH_IMAGES * cell.seed, SEARCH_IMAGES * (cell.seed + 1))
    evaluator = Evaluator(calibrate(case.model, case.graph, case.contract, seeds), case.graph, case.kind)
    started = time.perf_counter()
    candidate = finish(evaluated(evaluator, options))
    knobs = {**candidate.knobs, "seconds": f"{time.perf_counter() - started:.1f}"}
    return schedule_of(replace(candidate, knobs=knobs), case.graph, case.contract, options)


def _plain(case: Case, cell: Cell) -> Schedule:
    """Every call in full, as many as the ratio leaves, in the variant of the sampler nearest to the full run."""
    steps = case.contract.sampler.calls
    calls = round(steps * (1 - cell.ratio))
    seeds = range(SEARCH_IMAGES)
    tuning = calibrate(case.model, case.graph, case.contract, seeds)

    def full(variant: Variant) -> Schedule:
        contract = replace(case.contract, sampler=variant.spec)
        schedule = full_schedule(contract, case.graph.granularity, "output", case.graph.block_names)
        return replace(schedule, origin={"reached": f"{1 - calls / steps:.4f}", "variant": variant.label})

    def score(schedule: Schedule) -> float:
        return float(np.median(psnr_db(images_of(tuning, schedule), tuning.images)))

    sampler = cell.method.removeprefix("plain:")
    return max(map(full, variants(sampler, calls, case.model.scheduler_config)), key=score)


def pruner_file(case: str, method: str, seed: int, iterations: int) -> Path:
    """Where the pruner of a cell is kept; one pruner serves all ratios, polished or not."""
    name = method.replace("dipgo-unpolished", "dipgo").replace(":", "-")
    return PRUNERS / f"{case}-{name}-{seed}-{iterations}.pruner"


def trained_options(cell: Cell, settings: DipgoOptions, kind: Kind) -> SearchOptions:
    """The whole options of a gradient search. Every search seed trains on images of its own."""
    PRUNERS.mkdir(exist_ok=True)
    settings = replace(
        settings,
        first_seed=settings.first_seed + 10_000 * cell.seed,
        pruner=pruner_file(cell.case, cell.method, cell.seed, settings.iterations),
    )
    return SearchOptions("dipgo", cell.ratio, kind, cell.seed, settings, images=SEARCH_IMAGES)


def _by_gradient(case: Case, cell: Cell, settings: DipgoOptions) -> Schedule:
    def show(progress: Progress) -> None:
        if progress.stage == "training" and progress.done % 50 == 0:
            print(f"{cell.case} {cell.method} {cell.seed}: {progress}", file=sys.stderr, flush=True)

    options = trained_options(cell, settings, case.kind)
    return finish(search(case.model, case.contract, options, blocks=case.graph), show)


def measured(cell: Cell, steps: int) -> Row:
    """The row of one cell."""
    case, started = case_of(cell.case, steps), time.monotonic()
    schedule = searched(case, cell)
    took = time.monotonic() - started
    images = images_of(case.reference, schedule)
    full, converged = psnr_db(images, case.reference.images), psnr_db(images, case.converged)
    return {
        "steps": steps,
        "reached": float(schedule.origin["reached"]),
        "psnr_full_db": percentiles(full, 10, 50),
        "psnr_full_interval_db": median_interval(full),
        "psnr_converged_db": percentiles(converged, 10, 50),
        "psnr_converged_interval_db": median_interval(converged),
        "seconds": round(float(schedule.origin.get("seconds", took)), 1),
        "search_cost": round(float(schedule.origin.get("search_cost", 0.0)), 1),
        "origin": dict(schedule.origin),
        "calls": sum(bool(step) for step in schedule.computed),
    }


def cells(cases: Sequence[str], methods: Sequence[str], seeds: int, ratios: Sequence[float]) -> Iterator[Cell]:
    """Every combination; methods that draw nothing have one seed."""
    for case in cases:
        for method in methods:
            drawn = method in EVALUATED or method == "random" or options_of(method, case) is not None
            for seed in range(seeds if drawn else 1):
                yield from (Cell(case, method, seed, ratio) for ratio in ratios)


def main() -> None:
    """Parse options, run what is missing, write after every cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    trained = [*GRADIENT, *(f"ablation:{name}" for name in ABLATIONS)]
    known = [*RULES, *EVALUATED, *PLAIN, *trained]
    parser.add_argument("--methods", nargs="+", choices=known, default=[*RULES, *EVALUATED, *PLAIN, *GRADIENT])
    parser.add_argument("--seeds", type=int, default=3, help="search seeds of methods that draw")
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument("--steps", type=int, default=50, help="network calls of the full run")
    parser.add_argument("--iterations", type=int, help="gradient steps instead of the preset's: rows NAME@N")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results, continued where it stands")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    suffix = f"@{arguments.iterations}" if arguments.iterations else ""
    methods = [method + suffix * (method in trained) for method in arguments.methods]
    all_cells = cells(arguments.cases, methods, arguments.seeds, arguments.ratios)
    for row in completed(arguments.out, all_cells, partial(measured, steps=arguments.steps)):
        print(json.dumps({key: row[key] for key in SHOWN}), flush=True)


if __name__ == "__main__":
    main()

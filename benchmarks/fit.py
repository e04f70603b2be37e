"""How many trajectories and how much memory the closed-form fit needs, and what moving the times adds.

A cell is one fit. Its sampler draws 64 images from seeds that no search saw. They are compared with the converged run.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from resumable import completed

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.metrics import percentiles, psnr_db
from dipgo_deploy.core.progress import finish
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, load_model, make_contract
from dipgo_deploy.search import SearchOptions, method_options, search
from dipgo_deploy.search.fit.teacher import Images, Teacher, record_teacher, run_teacher, teacher_spec

RESULTS = Path(__file__).parent / "results" / "fit.json"
MODELS = ("digits-unet", "digits-dit")
FRESH, FIRST = 64, 0
"""Images of the evaluation and their first seed, far from the seeds of searches."""


@dataclass(frozen=True)
class Cell:
    """One fit. ``memory`` 0 is the whole history."""

    model: str
    calls: int
    trajectories: int
    memory: int
    sweeps: int
    seed: int = 0


@cache
def case(name: str) -> tuple[LoadedModel, Contract, BlockGraph]:
    """A reference model without guidance, and its blocks."""
    model = load_model(name)
    return model, make_contract(model, guidance="none"), trace(model).blocks


@cache
def converged(name: str) -> Teacher:
    """The converged run of the fresh images."""
    model, contract, _ = case(name)
    seeds = tuple(range(FIRST, FIRST + FRESH))
    images = Images(model, contract, seeds, tuple(seed % 10 for seed in seeds), 1.0)
    return finish(record_teacher(images, finish(teacher_spec(images, "converged"))))


def quality(name: str, sampler: SamplerSpec) -> dict[str, float]:
    """PSNR of a sampler's fresh images to the converged run, in dB."""
    teacher = converged(name)
    images = replace(teacher.images_drawn, contract=replace(teacher.images_drawn.contract, sampler=sampler))
    drawn = run_teacher(images, sampler)[-1].numpy()
    return percentiles(psnr_db(drawn, np.asarray(teacher.images)), 10, 50)


def measure(cell: Cell) -> dict[str, Any]:
    """Fit, and draw the fresh images."""
    model, contract, blocks = case(cell.model)
    settings = method_options(
        "fit", calls=cell.calls, trajectories=cell.trajectories, memory=cell.memory or None, sweeps=cell.sweeps
    )
    started = time.perf_counter()
    schedule = finish(search(model, contract, SearchOptions("fit", seed=cell.seed, settings=settings), blocks=blocks))
    seconds = round(time.perf_counter() - started, 1)
    origin = schedule.origin
    return {"psnr_db": quality(cell.model, schedule.contract.sampler), "held_out_db": float(origin["score_db"]),
            "best_plain": origin["best_plain"], "seconds": seconds}  # fmt: skip


def cells(models: list[str]) -> list[Cell]:
    """All cells, the cheapest first."""
    every = []
    for model in models:
        for calls in (5, 10):
            every += [Cell(model, calls, count, 0, 0) for count in (1, 2, 4, 8, 16, 32, 64, 256)]
            every += [Cell(model, calls, 8, memory, 0) for memory in (1, 2, 3)]
            every += [Cell(model, calls, 8, 0, sweeps) for sweeps in (1, 2, 3, 4)]
            every += [Cell(model, calls, 8, memory, 3) for memory in (1, 2, 3)]
            every += [Cell(model, calls, 32, 0, 3), *(Cell(model, calls, 8, 0, 3, seed) for seed in (1, 2))]
    return sorted(every, key=lambda cell: cell.calls * (1 + 20 * cell.sweeps) * (8 + cell.trajectories))


def main() -> None:
    """Run the cells that the file lacks, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    for row in completed(RESULTS, cells(parser.parse_args().models), measure):
        names = ("model", "calls", "trajectories", "memory", "sweeps", "seed")
        print(*(f"{name} {row[name]}" for name in names), row["psnr_db"], f"{row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()

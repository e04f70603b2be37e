"""Engines at full size: seconds, peak memory and bytes of SD-1.5 in half precision under DiP-GO's published schedule.

The weights are random, and each layout is one resumable cell: ``python benchmarks/engine_build.py``. TensorRT for RTX
builds without a GPU, ``--target tensorrt`` builds for the first GPU. Rows go to benchmarks/results/engines.json, and as
JSON to the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from published_schedule import published_schedule
from resumable import Row, completed

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.disk import cache_folder
from dipgo_deploy.core.program import Layout
from dipgo_deploy.core.progress import finish
from dipgo_deploy.engines.build import build_bundle_engines
from dipgo_deploy.engines.options import EngineOptions, PlanOptions
from dipgo_deploy.engines.planner import plan
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import make_contract
from dipgo_deploy.models.sources.random import load_random
from dipgo_deploy.trt.job import BuildFlags

RESULTS = Path(__file__).parent / "results" / "engines.json"
RECORDED = (
    "graph", "bytes", "weight_bytes", "activation_bytes", "layers", "seconds", "version", "build_memory_bytes",
    "precision",
)  # fmt: skip
"""Fields of an engine's record in the results."""


@dataclass(frozen=True)
class Cell:
    """One build for one image a call: a shipped config with random weights, a layout, a target and an architecture."""

    model: str
    layout: Layout
    target: str
    gpu: str


def bundle_of(cell: Cell) -> Path:
    """The bundle of a cell. The first use exports it into the cache."""
    folder = cache_folder() / "engine_build" / f"{cell.model}-{cell.layout}"
    if not (folder / BUNDLE_FILE).is_file():
        model = load_random(cell.model, dtype="float16")
        contract = make_contract(model, sampler="ddim", steps=50, guidance="concat", batch=BatchRange(1, 1, 4))
        schedule = published_schedule(trace(model, granularity="stage").blocks, contract)
        export(model, schedule, folder, ExportOptions(cell.layout))
    return folder


def measure(cell: Cell) -> Row:
    """Build every engine of the cell, static for one image (two rows under guidance)."""
    bundle = load_bundle(bundle_of(cell))
    gpus = (cell.gpu,) if cell.target == "rtx" else ()
    flags = BuildFlags(static=True)
    # The run that checks for finite numbers takes minutes on the CPU, and is no part of a build.
    options = EngineOptions(target=cell.target, gpus=gpus, batch=BatchRange(1, 1, 1), flags=flags, check_finite=False)
    started = time.perf_counter()
    report = finish(build_bundle_engines(bundle, options))
    seconds = time.perf_counter() - started
    records = report.records
    built_bytes = sum(record.bytes for record in records)
    layouts = {layout.layout: layout for layout in plan(bundle, PlanOptions(batch=1)).layouts}
    planned = layouts[cell.layout]
    return {
        "seconds": seconds,
        "counts": dict(report.counts),
        "engines": [{name: value for name, value in asdict(record).items() if name in RECORDED} for record in records],
        "model_weight_bytes": bundle.manifest.model_weight_bytes,
        "weights_over_model": sum(r.weight_bytes for r in records) / bundle.manifest.model_weight_bytes,
        "engine_bytes_over_model": built_bytes / bundle.manifest.model_weight_bytes,
        "estimated_bytes": planned.engine_bytes,
        "estimate_error": planned.engine_bytes / built_bytes - 1,
        "estimated_activation_bytes": planned.activation_bytes,
        "peak_memory_bytes": max(r.build_memory_bytes for r in records),
        "peak_memory_bytes_of_this_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Build the layouts that are not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--layouts", nargs="+", default=["segments", "subnets"], choices=["segments", "subnets"])
    parser.add_argument("--target", default="rtx", choices=["rtx", "tensorrt"])
    parser.add_argument("--gpu", default="sm89")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    cells = [Cell(arguments.model, layout, arguments.target, arguments.gpu) for layout in arguments.layouts]
    rows = list(completed(arguments.results, cells, measure))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

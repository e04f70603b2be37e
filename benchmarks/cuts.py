"""Cuts: seconds per graph, and bytes of weights of all graphs together next to the model's.

Measured for both reference models, every granularity and both layouts, with a random schedule of 50 steps. The document
goes to benchmarks/results/cuts.json (``--out``), and to the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dipgo_deploy.bench.entries import weight_bytes
from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.program import Layout
from dipgo_deploy.graphs import cut, trace
from dipgo_deploy.graphs.cut import load_master
from dipgo_deploy.models import PRESETS, REFERENCE_MODELS, load_model, make_contract
from dipgo_deploy.runtime.environment import environment
from dipgo_deploy.search.random_schedules import random_schedule

RESULTS = Path(__file__).parent / "results" / "cuts.json"


def measure(name: str, granularity: str, layout: Layout, steps: int) -> dict[str, Any]:
    """Export one random schedule, time the cut of each of its graphs, and count the weights."""
    model = load_model(name)
    traced = trace(model, granularity=granularity)
    schedule = random_schedule(
        traced.blocks, make_contract(model, steps=steps), "output", np.random.default_rng(0), 0.5
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(export(model, schedule, Path(folder) / "bundle", ExportOptions(layout)))
        master, seconds = load_master(traced.master), []
        for graph in bundle.program.graphs:
            started = time.perf_counter()
            content = cut(master, graph, traced.blocks)
            seconds.append(time.perf_counter() - started)
            assert onnx.load_model_from_string(content).graph.node
        ratio = weight_bytes(bundle) / bundle.manifest.model_weight_bytes
    return {
        "model": name,
        "granularity": granularity,
        "layout": layout,
        "graphs": len(seconds),
        "cut_seconds": {"median": float(np.median(seconds)), "worst": max(seconds)},
        "bundle_weights_over_model": ratio,
        "graph_weights_over_model": sum(g.weight_bytes for g in bundle.program.graphs) / traced.blocks.weight_bytes,
    }


def main() -> None:
    """Measure every cell and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="network calls of the full run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results")
    arguments = parser.parse_args()
    rows = []
    for name in REFERENCE_MODELS:
        for granularity in PRESETS[load_model(name).class_name].granularities:
            for layout in ("subnets", "segments"):
                rows.append(measure(name, granularity, layout, arguments.steps))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    command = shlex.join(["python", "benchmarks/cuts.py", *sys.argv[1:]])
    document = {"environment": {**environment(), "command": command}, "rows": rows}
    write_atomic(arguments.out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(json.dumps(document))


if __name__ == "__main__":
    main()

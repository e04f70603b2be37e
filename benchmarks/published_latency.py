"""Latency of DiP-GO's published 0.80 schedule on the architecture it was made for, with random weights, on the CPU.

The schedule and the full run of 50 DDIM steps take turns on ONNX Runtime in one process. The full run runs twice a
round, and the difference between its two times is the noise. At 64 pixels of latent a CPU takes hours. A smaller latent
has the same graphs and weights. By its MACs the schedule can reach 5.0. Writes
``benchmarks/results/published_latency.json``. The last line printed is that document.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from published_schedule import published_schedule

from dipgo_deploy.bench.contenders import FullNetwork
from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.timing import Stopwatch, time_rounds
from dipgo_deploy.bundle import Bundle, ExportOptions, export, load_bundle
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.liveness import pruned_ratio
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.sampler import noise_for
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LoadedModel, load_random, make_contract
from dipgo_deploy.runtime.environment import environment
from dipgo_deploy.runtime.open import open_session

RESULTS = Path(__file__).parent / "results" / "published_latency.json"


def architecture(config: str, latent: int) -> LoadedModel:
    """The model of a shipped config, or of one in a file, on a square latent of ``latent`` pixels."""
    model = load_random(config)
    return replace(model, latent_shape=(model.latent_shape[0], latent, latent))


def export_published(model: LoadedModel, arguments: argparse.Namespace, folder: Path) -> Bundle:
    """The bundle of the published schedule."""
    contract = make_contract(model, sampler=arguments.sampler, steps=50, guidance=arguments.guidance)
    schedule = published_schedule(trace(model, granularity="stage").blocks, contract)
    return load_bundle(export(model, schedule, folder / "bundle", ExportOptions(arguments.layout)))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trace, export and time. The PyTorch model is released before anything is timed."""
    started = time.perf_counter()
    model = architecture(arguments.config, arguments.latent)
    conditioning = model.conditioning(range(arguments.batch), arguments.guidance)
    bundle = export_published(model, arguments, folder)
    del model
    export_seconds = time.perf_counter() - started
    run = RunOptions(threads=arguments.threads)
    network = FullNetwork(bundle, BenchOptions(batch=arguments.batch, run=run))
    full = network.full().session
    own = open_session(bundle, arguments.batch, run, guidance_scale=network.guidance_scale)
    noise = noise_for(range(arguments.batch), bundle.manifest.contract.latent_shape)
    acts = {"full": partial(full.run, noise, conditioning), "schedule": partial(own.run, noise, conditioning)}
    watch = Stopwatch("full")
    for number, durations in enumerate(time_rounds(acts, "full", arguments.rounds), start=1):
        watch.add(durations)
        print(json.dumps({"round": number, **durations}), file=sys.stderr, flush=True)
    macs_ratio = full.program.macs.full / own.program.macs.full
    return {
        "latent_shape": list(bundle.manifest.contract.latent_shape),
        "rows": arguments.batch * bundle.manifest.contract.rows_per_image,
        "pruned_ratio": pruned_ratio(bundle.schedule, bundle.blocks),
        "nfe": {"full": full.program.nfe, "schedule": own.program.nfe},
        "graphs": len(own.program.graphs),
        "latency_ms": {name: watch.latency_ms(name) for name in acts},
        "rounds_ms": watch.series,
        "speedup": watch.speedup("schedule"),
        "possible_speedup": macs_ratio,
        "efficiency": watch.speedup("schedule") / macs_ratio,
        "aa_ratio": watch.aa_ratio,
        "made_seconds": export_seconds,
        "model_weight_bytes": bundle.manifest.model_weight_bytes,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="sd15", help="a shipped architecture, or a config.json of the same blocks")
    parser.add_argument("--latent", type=int, default=32, help="side of the latent in pixels")
    parser.add_argument("--sampler", default="ddim", help="sampler of 50 steps")
    parser.add_argument("--guidance", choices=("none", "concat"), default="concat", help="guidance layout")
    parser.add_argument("--layout", choices=("subnets", "segments"), default="subnets", help="of the bundle")
    parser.add_argument("--batch", type=int, default=1, help="images of a run")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, of one schedule and two full runs each")
    parser.add_argument("--threads", type=int, help="threads of ONNX Runtime; its own choice if left out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file for the results")
    return parser.parse_args()


def main() -> None:
    """Measure, write and print."""
    arguments = options()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(arguments, Path(folder))
    command = shlex.join(["python", "benchmarks/published_latency.py", *sys.argv[1:]])
    document = {"config": arguments.config, **row, "environment": {**environment(), "command": command}}
    write_atomic(arguments.out, json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(json.dumps(document, allow_nan=False))


if __name__ == "__main__":
    main()

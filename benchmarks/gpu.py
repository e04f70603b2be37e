"""What pruning is worth on a GPU: the full run against a schedule that prunes 0.8, backend by backend.

SD-1.5 (64x64 latents, DiP-GO's published schedule) and DiT-XL/2 at 256 (random entries, or ``--schedule FILE``), random
weights, half precision, DDIM with 50 steps, one image under guidance: two rows a call. Every cell is one model on one
backend: full run and schedule in turns, speed-up, its share of what the MACs promise (``efficiency``: speed-up over
MACs ratio, convention full), the share of a run that the device waits for the host between calls, and the device
memory, next to the planner's estimate for engines.

A cell takes minutes and stands in the results when it is done; ``--cells sd15:torch-eager`` measures one. Cells that
cannot run here are named and left out. ``--rehearse`` goes the same way with tiny configs of the same blocks, on the
CPU where there is no GPU (torch.compile then stops before it writes code), into a file of its own. The last line
printed sums up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from published_schedule import published_schedule
from resumable import Row, completed

from dipgo_deploy.bench.contenders import measure_start
from dipgo_deploy.bench.timing import Stopwatch, enqueue, time_rounds
from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.files import load_schedule
from dipgo_deploy.core.program import Layout
from dipgo_deploy.core.progress import finish
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.engines.options import PlanOptions
from dipgo_deploy.engines.planner import plan
from dipgo_deploy.graphs import Trace, cut_program, trace
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.models import LoadedModel, make_contract
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.sources.random import load_random, read_random_config
from dipgo_deploy.runtime.clock import clock_for
from dipgo_deploy.runtime.generate import Inputs, run_inputs
from dipgo_deploy.runtime.open import onnxruntime_class, open_session
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.torch_backend import TorchBackend
from dipgo_deploy.search import SearchOptions, schedule_by_rule

HERE = Path(__file__).parent
CONFIGS = {"sd15": "sd15", "dit-xl-2": "dit-xl-2-256"}
TINY: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": [32, 32, 64, 64],
        "sample_size": 16,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    "dit-xl-2": {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 16},
}
"""What a rehearsal changes in a config; the blocks of a U-Net keep their names."""

RATIO, SCALE = 0.8, 7.5


@dataclass(frozen=True)
class Cell:
    """A model on a backend: ``torch-eager``, ``onnxruntime-subnets-graph`` and so on."""

    model: str
    backend: str


BACKENDS: dict[str, dict[str, Any]] = {
    "torch-eager": {},
    "torch-eager-graph": {"cuda_graph": True},
    "torch-compiled": {"compiler": "inductor"},
    "onnxruntime-subnets": {"layout": "subnets"},
    "onnxruntime-segments": {"layout": "segments"},
    "onnxruntime-subnets-graph": {"layout": "subnets", "cuda_graph": True},
    "onnxruntime-segments-graph": {"layout": "segments", "cuda_graph": True},
    "tensorrt-subnets": {"layout": "subnets"},
    "tensorrt-segments": {"layout": "segments"},
    "tensorrt-subnets-graph": {"layout": "subnets", "cuda_graph": True},
}


@dataclass(frozen=True)
class Given:
    """Options of the command line that a measurement depends on."""

    rehearse: bool
    rounds: int
    steps: int
    batch: int
    schedule: Path | None
    work: Path

    @property
    def device(self) -> str:
        """A rehearsal runs on what there is."""
        return "cuda" if torch.cuda.is_available() or not self.rehearse else "cpu"

    @property
    def dtype(self) -> str:
        """Half precision on a GPU."""
        return "float16" if self.device == "cuda" else "float32"


@dataclass(frozen=True)
class Subject:
    """One model, traced, and the two schedules that are compared."""

    model: LoadedModel
    traced: Trace
    full: Schedule
    pruned: Schedule


@cache
def subject(name: str, given: Given) -> Subject:
    """The model with random weights, and its schedules."""
    config = read_random_config(CONFIGS[name])
    if given.rehearse:
        config = replace(config, denoiser={**config.denoiser, **TINY[name]}, latent_shape=None)
    model = load_random(config, dtype=given.dtype)
    blocks = (traced := trace(model)).blocks
    contract = make_contract(model, steps=given.steps, guidance="concat")
    full = full_schedule(contract, blocks.granularity, "output", blocks.block_names)
    if given.schedule is not None:
        return Subject(model, traced, full, load_schedule(given.schedule))
    if name == "sd15" and given.steps == 50:
        return Subject(model, traced, full, published_schedule(blocks, contract))
    kind = "residual" if any(block.residual_input for block in blocks.blocks) else "output"
    options = SearchOptions("random", RATIO, kind=kind)  # type: ignore[arg-type]
    return Subject(model, traced, full, schedule_by_rule(blocks, contract, options))


def session_of(of: Subject, schedule: Schedule, cell: Cell, given: Given) -> Session:
    """A session of one schedule on the cell's backend."""
    how = dict(BACKENDS[cell.backend])
    layout: Layout = how.pop("layout", "subnets")
    blocks = of.traced.blocks
    program = lower(schedule, blocks, read_sampler(schedule.contract.sampler), LowerOptions(layout=layout))
    if cell.backend.startswith("tensorrt"):
        return engines_of(of, schedule, layout, given, bool(how.get("cuda_graph")))
    if cell.backend.startswith("torch"):
        compiler = "aot_eager" if given.rehearse and "compiler" in how else how.get("compiler")
        live = TorchBackend(of.model, blocks, program, device=given.device, compiler=compiler)
        whole = bool(how.get("cuda_graph"))
        return Session(program, live, given.batch, SCALE, cuda_graph=whole)
    graphs = cut_program(of.traced.master, program, blocks)
    runner = onnxruntime_class()(graphs, of.traced.folder, device=given.device, **how)
    return Session(program, runner, given.batch, SCALE)


def engines_of(of: Subject, schedule: Schedule, layout: Layout, given: Given, cuda_graph: bool) -> Session:
    """As ``session_of``, through a bundle and its engines, which stay in the work folder: a second try goes on."""
    from dipgo_deploy.engines import EngineOptions, build_bundle_engines
    from dipgo_deploy.trt.target import load_target

    load_target("tensorrt", "run")
    folder = given.work / bundle_name(schedule, layout)
    if not folder.is_dir():
        export(of.model, schedule, folder, ExportOptions(layout=layout))
    # The search for fp32 fallback nodes would run the schedule on the CPU, and random weights need none.
    finish(build_bundle_engines(load_bundle(folder), EngineOptions(target="tensorrt", check_finite=False)))
    run = RunOptions("tensorrt", cuda_graph=cuda_graph)
    return open_session(load_bundle(folder), given.batch, run, guidance_scale=SCALE)


def bundle_name(schedule: Schedule, layout: Layout) -> str:
    """Another for every model, dtype, sampler and schedule: an older bundle is never taken for a new one."""
    contract = schedule.contract
    made_for = (contract.model_digest, contract.dtype, contract.guidance, contract.latent_shape, contract.batch)
    what = (made_for, schedule.kind, schedule.blocks, schedule.compute, sorted(schedule.forecasts.items()))
    digest = hashlib.sha256(repr(what).encode()).hexdigest()
    method = schedule.origin.get("method", "full")
    return f"{contract.model_class}-{method}-{layout}-{contract.sampler.digest[:12]}-{digest[:12]}"


def measure(cell: Cell, given: Given) -> Row:
    """Full run and schedule of one cell."""
    of = subject(cell.model, given)
    inputs = run_inputs(of.model, of.full.contract, range(given.batch))
    full, full_start = measure_start(lambda: session_of(of, of.full, cell, given), inputs, given.device)
    pruned, pruned_start = measure_start(lambda: session_of(of, of.pruned, cell, given), inputs, given.device)
    acts = {"full": partial(enqueue, full, inputs), "schedule": partial(enqueue, pruned, inputs)}
    watch = Stopwatch("full")
    for measured in time_rounds(acts, "full", given.rounds, 0, clock_for(given.device)):
        watch.add(measured)
    speedup, promised = watch.speedup("schedule"), full.program.macs.full / pruned.program.macs.full
    return {
        "rehearsal": given.rehearse,
        "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        "dtype": given.dtype,
        "rows": given.batch * 2,
        "schedule": dict(of.pruned.origin),
        "network_calls": len(pruned.program.runs),
        "graphs": len(pruned.program.graphs),
        "full_ms": watch.latency_ms("full"),
        "schedule_ms": watch.latency_ms("schedule"),
        "speedup": speedup,
        "macs_ratio": promised,
        "efficiency": speedup / promised,
        "aa_ratio": watch.aa_ratio,
        "host_share": {"full": host_share(full, inputs, given), "schedule": host_share(pruned, inputs, given)},
        "first_image_ms": {"full": full_start.first_image_ms, "schedule": pruned_start.first_image_ms},
        "device_bytes": {"full": full_start.device_bytes, "schedule": pruned_start.device_bytes},
        "planned_bytes": {
            "full": planned_bytes(of.full, cell, given),
            "schedule": planned_bytes(of.pruned, cell, given),
        },
    }


def planned_bytes(schedule: Schedule, cell: Cell, given: Given) -> int | None:
    """The device memory of a cell's engines as ``plan`` estimates it. None where there are no engines.

    It knows no code and no workspace of TensorRT's engines: weights, slots and activations.
    """
    if not cell.backend.startswith("tensorrt"):
        return None
    layout = BACKENDS[cell.backend]["layout"]
    bundle = load_bundle(given.work / bundle_name(schedule, layout))
    planned = plan(bundle, PlanOptions(batch=given.batch, target="tensorrt"))
    return next(one.device_bytes for one in planned.layouts if one.layout == layout)


def host_share(session: Session, inputs: Inputs, given: Given) -> float:
    """Share of a run between calls: what lies between the end of one and the beginning of the next, on the device."""
    clock = clock_for(given.device)
    session.begin(*inputs)
    marks = []
    with session.backend.running():
        for act in session.calls:
            marks.append(clock.mark())
            act()
            marks.append(clock.mark())
    spans = [clock.elapsed_ms(first, second) for first, second in pairwise(marks)]
    return sum(spans[1::2]) / sum(spans)


def attempted(cells: Sequence[Cell], given: Given, out: Path) -> tuple[list[Row], dict[str, str]]:
    """Rows of the cells that run here, and why the others do not."""
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for cell in cells:
        try:
            rows += completed(out, [cell], lambda one: measure(one, given))
        except DipgoError as error:
            left_out[f"{cell.model}:{cell.backend}"] = str(error)
            print(f"{cell.model}:{cell.backend} left out: {error}", file=sys.stderr, flush=True)
            continue
        row = rows[-1]
        found = f"speed-up {row['speedup']:.2f}, efficiency {row['efficiency']:.2f}"
        host = f"host {row['host_share']['schedule']:.2%}"
        print(f"{cell.model}:{cell.backend}: {found}, {host}", file=sys.stderr, flush=True)
    return rows, left_out


def main() -> None:
    """Parse options, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [f"{model}:{backend}" for model in CONFIGS for backend in BACKENDS]
    parser.add_argument("--cells", nargs="+", choices=names, default=names, metavar="MODEL:BACKEND")
    parser.add_argument("--rehearse", action="store_true", help="tiny configs, on the CPU where there is no GPU")
    parser.add_argument("--rounds", type=int, default=10, help="timed rounds")
    parser.add_argument("--steps", type=int, default=50, help="network calls of the full run")
    parser.add_argument("--batch", type=int, default=1, help="images of a run; two rows each")
    parser.add_argument("--schedule", type=Path, help="a searched schedule.json in place of the built-in one")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dipgo-gpu", help="for bundles")
    parser.add_argument("--out", type=Path, help="file for the results")
    asked = parser.parse_args()
    given = Given(asked.rehearse, asked.rounds, asked.steps, asked.batch, asked.schedule, asked.work)
    out = asked.out or HERE / "results" / ("gpu_rehearsal.json" if asked.rehearse else "gpu.json")
    cells = [Cell(*name.split(":")) for name in asked.cells]
    rows, left_out = attempted(cells, given, out)
    best = {model: max((row["efficiency"] for row in rows if row["model"] == model), default=None) for model in CONFIGS}
    print(json.dumps({"cells": len(rows), "best_efficiency": best, "left_out": left_out}))


if __name__ == "__main__":
    main()

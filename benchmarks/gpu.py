"""Speed-up by pruning on a GPU: the full run against a schedule that prunes 0.8, backend by backend.

Models are SD-1.5 (64x64 latents, DiP-GO's published schedule) and DiT-XL/2 at 256 (random entries, or ``--schedule
FILE``), with random weights in half precision. A run is DDIM with 50 steps and one image under guidance, two rows a
call. Every cell is one model on one backend, with full run and schedule in turns:

* speed-up, and ``efficiency``: speed-up over the ratio of MACs (convention full);
* share of a run that the device waits for the host between calls;
* device memory, next to the planner's estimate for engines.

A cell takes minutes and is not run again. ``--cells sd15:torch-eager`` measures one cell. Cells that cannot run here
are named and left out. ``--rehearse`` runs the same code with tiny configs of the same blocks, on the CPU if there is
no GPU, into a file of its own. The last line printed is a summary.
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
from dipgo_deploy.engines.build import build_bundle_engines
from dipgo_deploy.engines.options import EngineOptions, PlanOptions
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
from dipgo_deploy.trt.target import load_target

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
"""Changes of a rehearsal to a config. The blocks of a U-Net keep their names."""

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
class Settings:
    """Options of the command line that a measurement depends on."""

    rehearse: bool
    rounds: int
    steps: int
    batch: int
    schedule: Path | None
    work: Path

    @property
    def device(self) -> str:
        """The GPU. A rehearsal without a GPU runs on the CPU."""
        return "cuda" if torch.cuda.is_available() or not self.rehearse else "cpu"

    @property
    def dtype(self) -> str:
        """Half precision on a GPU."""
        return "float16" if self.device == "cuda" else "float32"


@dataclass(frozen=True)
class Subject:
    """A traced model, and the two schedules that are compared."""

    model: LoadedModel
    traced: Trace
    full: Schedule
    pruned: Schedule


@cache
def subject(name: str, settings: Settings) -> Subject:
    """The model with random weights, and its schedules."""
    config = read_random_config(CONFIGS[name])
    if settings.rehearse:
        config = replace(config, denoiser={**config.denoiser, **TINY[name]}, latent_shape=None)
    model = load_random(config, dtype=settings.dtype)
    blocks = (traced := trace(model)).blocks
    contract = make_contract(model, steps=settings.steps, guidance="concat")
    full = full_schedule(contract, blocks.granularity, "output", blocks.block_names)
    if settings.schedule is not None:
        return Subject(model, traced, full, load_schedule(settings.schedule))
    if name == "sd15" and settings.steps == 50:
        return Subject(model, traced, full, published_schedule(blocks, contract))
    kind = "residual" if any(block.residual_input for block in blocks.blocks) else "output"
    options = SearchOptions("random", RATIO, kind=kind)  # type: ignore[arg-type]
    return Subject(model, traced, full, schedule_by_rule(blocks, contract, options))


def session_of(of: Subject, schedule: Schedule, cell: Cell, settings: Settings) -> Session:
    """A session of one schedule on the cell's backend."""
    how = dict(BACKENDS[cell.backend])
    layout: Layout = how.pop("layout", "subnets")
    blocks = of.traced.blocks
    program = lower(schedule, blocks, read_sampler(schedule.contract.sampler), LowerOptions(layout=layout))
    if cell.backend.startswith("tensorrt"):
        return engines_of(of, schedule, layout, settings, bool(how.get("cuda_graph")))
    if cell.backend.startswith("torch"):
        compiler = "aot_eager" if settings.rehearse and "compiler" in how else how.get("compiler")
        live = TorchBackend(of.model, blocks, program, device=settings.device, compiler=compiler)
        whole = bool(how.get("cuda_graph"))
        return Session(program, live, settings.batch, SCALE, cuda_graph=whole)
    graphs = cut_program(of.traced.master, program, blocks)
    runner = onnxruntime_class()(graphs, of.traced.folder, device=settings.device, **how)
    return Session(program, runner, settings.batch, SCALE)


def engines_of(of: Subject, schedule: Schedule, layout: Layout, settings: Settings, cuda_graph: bool) -> Session:
    """A session on the engines of a bundle. Bundle and engines stay in the work folder, so a second try continues."""
    load_target("tensorrt", "run")
    folder = settings.work / bundle_name(schedule, layout)
    if not folder.is_dir():
        export(of.model, schedule, folder, ExportOptions(layout=layout))
    # The check for finite numbers would run the schedule on the CPU.
    finish(build_bundle_engines(load_bundle(folder), EngineOptions(target="tensorrt", check_finite=False)))
    run = RunOptions("tensorrt", cuda_graph=cuda_graph)
    return open_session(load_bundle(folder), settings.batch, run, guidance_scale=SCALE)


def bundle_name(schedule: Schedule, layout: Layout) -> str:
    """A name that differs by model, dtype, sampler and schedule, so that no older bundle is used by mistake."""
    contract = schedule.contract
    made_for = (contract.model_digest, contract.dtype, contract.guidance, contract.latent_shape, contract.batch)
    what = (made_for, schedule.kind, schedule.blocks, schedule.compute, sorted(schedule.forecasts.items()))
    digest = hashlib.sha256(repr(what).encode()).hexdigest()
    method = schedule.origin.get("method", "full")
    return f"{contract.model_class}-{method}-{layout}-{contract.sampler.digest[:12]}-{digest[:12]}"


def measure(cell: Cell, settings: Settings) -> Row:
    """Full run and schedule of one cell."""
    of = subject(cell.model, settings)
    inputs = run_inputs(of.model, of.full.contract, range(settings.batch))
    full, full_start = measure_start(lambda: session_of(of, of.full, cell, settings), inputs, settings.device)
    pruned, pruned_start = measure_start(lambda: session_of(of, of.pruned, cell, settings), inputs, settings.device)
    acts = {"full": partial(enqueue, full, inputs), "schedule": partial(enqueue, pruned, inputs)}
    watch = Stopwatch("full")
    for measured in time_rounds(acts, "full", settings.rounds, 0, clock_for(settings.device)):
        watch.add(measured)
    speedup, promised = watch.speedup("schedule"), full.program.macs.full / pruned.program.macs.full
    return {
        "rehearsal": settings.rehearse,
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "dtype": settings.dtype,
        "rows": settings.batch * 2,
        "schedule": dict(of.pruned.origin),
        "network_calls": len(pruned.program.runs),
        "graphs": len(pruned.program.graphs),
        "full_ms": watch.latency_ms("full"),
        "schedule_ms": watch.latency_ms("schedule"),
        "speedup": speedup,
        "macs_ratio": promised,
        "efficiency": speedup / promised,
        "aa_ratio": watch.aa_ratio,
        "host_share": {"full": host_share(full, inputs, settings), "schedule": host_share(pruned, inputs, settings)},
        "first_image_ms": {"full": full_start.first_image_ms, "schedule": pruned_start.first_image_ms},
        "device_bytes": {"full": full_start.device_bytes, "schedule": pruned_start.device_bytes},
        "planned_bytes": {
            "full": planned_bytes(of.full, cell, settings),
            "schedule": planned_bytes(of.pruned, cell, settings),
        },
    }


def planned_bytes(schedule: Schedule, cell: Cell, settings: Settings) -> int | None:
    """The planner's estimate of the device memory of a cell's engines, None for other backends.

    The code of TensorRT's engines is not counted, because no such engine was measured yet.
    """
    if not cell.backend.startswith("tensorrt"):
        return None
    layout = BACKENDS[cell.backend]["layout"]
    bundle = load_bundle(settings.work / bundle_name(schedule, layout))
    planned = plan(bundle, PlanOptions(batch=settings.batch, target="tensorrt"))
    return next(plan.device_bytes for plan in planned.layouts if plan.layout == layout)


def host_share(session: Session, inputs: Inputs, settings: Settings) -> float:
    """Share of a run between the end of a call and the beginning of the next call, on the device."""
    clock = clock_for(settings.device)
    session.begin(*inputs)
    marks = []
    with session.backend.running():
        for act in session.calls:
            marks.append(clock.mark())
            act()
            marks.append(clock.mark())
    spans = [clock.elapsed_ms(first, second) for first, second in pairwise(marks)]
    return sum(spans[1::2]) / sum(spans)


def attempted(cells: Sequence[Cell], settings: Settings, out: Path) -> tuple[list[Row], dict[str, str]]:
    """Rows of the cells that run here, and why the others do not."""
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    for cell in cells:
        try:
            rows += completed(out, [cell], lambda one: measure(one, settings))
        except DipgoError as error:
            left_out[f"{cell.model}:{cell.backend}"] = str(error)
            print(f"{cell.model}:{cell.backend} left out: {error}", file=sys.stderr, flush=True)
            continue
        row = rows[-1]
        speed = f"speed-up {row['speedup']:.2f}, efficiency {row['efficiency']:.2f}"
        host = f"host {row['host_share']['schedule']:.2%}"
        print(f"{cell.model}:{cell.backend}: {speed}, {host}", file=sys.stderr, flush=True)
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
    arguments = parser.parse_args()
    settings = Settings(
        arguments.rehearse, arguments.rounds, arguments.steps, arguments.batch, arguments.schedule, arguments.work
    )
    out = arguments.out or HERE / "results" / ("gpu_rehearsal.json" if settings.rehearse else "gpu.json")
    cells = [Cell(*name.split(":")) for name in arguments.cells]
    rows, left_out = attempted(cells, settings, out)
    best = {model: max((row["efficiency"] for row in rows if row["model"] == model), default=None) for model in CONFIGS}
    print(json.dumps({"cells": len(rows), "best_efficiency": best, "left_out": left_out}))


if __name__ == "__main__":
    main()

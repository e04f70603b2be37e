"""Every stage at full size: seconds and peak memory, on architectures with random weights.

``python benchmarks/full_size.py sd15 dit-xl-2-256`` runs the named cases, or all cases without a name. Cases in
benchmarks/results/full_size.json are not run again. Every stage is a process of its own:

* ``trace`` builds the model, traces it, makes a schedule (the published one for SD-1.5) and exports the bundle;
* ``check`` calls every distinct graph once on PyTorch's slots;
* ``cut`` makes further SubNets from the bundle;
* ``meta`` traces a model without weights, which need not fit the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from published_schedule import published_schedule
from resumable import completed

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.core.program import memory_bytes
from dipgo_deploy.graphs import cut_program, trace
from dipgo_deploy.lowering import lower
from dipgo_deploy.models import LoadedModel, load_random, make_contract, read_random_config
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from dipgo_deploy.verify.graph_check import check_graphs

RESULTS = Path(__file__).parent / "results" / "full_size.json"

COUNTED_GIGA_MACS = {
    "sd15": (338.749, 401.637),
    "sd21": (760.798, 1074.553),
    "sdxl": (2989.919, 3380.618),
    "dit-xl-2-256": (114.473, 118.667),
    "pixart-alpha-1024": (2141.259, 3254.762),
}
"""G MACs of one forward in the conventions papers and full, counted on the PyTorch modules."""


@dataclass(frozen=True)
class Size:
    """An architecture, changes to its config, and the stages that are worth their time on a CPU.

    ``check`` runs the model up to the first call of its last graph. Fewer ``steps`` shorten this.
    """

    config: str
    changed: dict[str, Any] = field(default_factory=dict)
    latent_shape: tuple[int, ...] | None = None
    stages: tuple[str, ...] = ("trace", "check", "cut")
    sampler: str = "ddim"
    steps: int = 50


def _shapes(config: str) -> Size:
    return Size(config, stages=("meta",))


SIZES = {
    "sd15": Size("sd15"),
    "dit-xl-2-256": Size("dit-xl-2-256"),
    "pixart-alpha-512": Size("pixart-alpha-512", sampler="dpmpp-2m"),
    "sdxl-reduced": Size("sdxl", {"transformer_layers_per_block": [1, 2, 3]}, (4, 32, 32), sampler="euler", steps=10),
    "sd3-reduced": Size("sd3-medium", {"num_layers": 4}, (16, 64, 64), sampler="flow-euler", steps=10),
    "flux-reduced": Size(
        "flux-dev", {"num_layers": 2, "num_single_layers": 2}, (16, 32, 32), sampler="flow-euler", steps=10
    ),
    "wan-reduced": Size("wan2.1-1.3b", {"num_layers": 4}, (16, 3, 16, 16), sampler="flow-euler", steps=10),
    "sd15-shapes": _shapes("sd15"),
    "sd21-shapes": _shapes("sd21"),
    "sdxl-shapes": _shapes("sdxl"),
    "dit-xl-2-256-shapes": _shapes("dit-xl-2-256"),
    "pixart-alpha-1024-shapes": _shapes("pixart-alpha-1024"),
    "sd3-medium-shapes": _shapes("sd3-medium"),
    "sd35-large-shapes": _shapes("sd35-large"),
    "flux-dev-shapes": _shapes("flux-dev"),
    "wan2.1-1.3b-shapes": _shapes("wan2.1-1.3b"),
}
"""Architectures by the name of their case."""

MAX_GRAPHS = 3
"""Graphs of a schedule. Each graph is called on a CPU, which takes long."""

HALF = ("sd15", "dit-xl-2-256")
"""Sizes that are also traced and cut in half precision. A CPU has no half arithmetic, so no graph is called."""


@dataclass(frozen=True)
class Case:
    """One row: a name of SIZES and the dtype."""

    name: str
    dtype: str


CASES = (*(Case(name, "float32") for name in SIZES), *(Case(name, "float16") for name in HALF))


class Clock:
    """Seconds and peak memory of named parts of this process."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the body of the context. Linux resets the high-water mark of memory on request."""
        Path("/proc/self/clear_refs").write_text("5")
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.parts[name] = {"seconds": seconds, "peak_memory_bytes": 1024 * int(lines["VmHWM"].split()[0])}


def _model(size: Size, dtype: str, device: str = "cpu") -> LoadedModel:
    config = read_random_config(size.config)
    shape = size.latent_shape or config.latent_shape
    config = replace(config, denoiser={**config.denoiser, **size.changed}, latent_shape=shape)
    return load_random(config, dtype=dtype, device=device)


def run_trace(size: Size, dtype: str, folder: Path) -> dict[str, Any]:
    """Model, trace, schedule, bundle."""
    clock = Clock()
    with clock.part("build"):
        model = _model(size, dtype)
    with clock.part("trace"):
        blocks = trace(model).blocks
    guidance = read_random_config(size.config).guidance or "none"
    contract = make_contract(model, sampler=size.sampler, steps=size.steps, guidance=guidance)
    with clock.part("schedule"):
        if size.config == "sd15":
            schedule = published_schedule(blocks, contract)
        else:
            schedule = schedule_by_rule(blocks, contract, SearchOptions("random", 0.8))
    with clock.part("export"):
        export(model, schedule, folder / "bundle", ExportOptions(max_graphs=MAX_GRAPHS))
    program = load_bundle(folder / "bundle").program
    on_disk = sum(path.stat().st_size for path in (folder / "bundle").rglob("*") if path.is_file())
    return {
        **_counts(size, model, blocks),
        "parts": clock.parts,
        "graphs": len(program.graphs),
        "steps": size.steps,
        "calls": program.nfe,
        "slot_bytes": memory_bytes(program, 1)["slots"],
        "bundle_bytes": on_disk,
        "trace_peak_of_weights": clock.parts["trace"]["peak_memory_bytes"] / model.weight_bytes,
        "export_peak_of_weights": clock.parts["export"]["peak_memory_bytes"] / model.weight_bytes,
    }


def _counts(size: Size, model: LoadedModel, blocks: Any) -> dict[str, Any]:
    expected = COUNTED_GIGA_MACS.get(size.config) if size.latent_shape is None and not size.changed else None
    return {
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "weight_bytes": model.weight_bytes,
        "latent_shape": model.latent_shape,
        "blocks": len(blocks.blocks),
        "giga_macs": {"papers": blocks.macs.papers / 1e9, "full": blocks.macs.full / 1e9},
        "counted_giga_macs": expected and dict(zip(("papers", "full"), expected, strict=True)),
    }


def run_check(size: Size, dtype: str, folder: Path) -> dict[str, Any]:
    """One call of every graph, one image: two rows under guidance."""
    clock = Clock()
    with clock.part("check"):
        checks = list(check_graphs(load_bundle(folder / "bundle"), threads=1))
    return {"parts": clock.parts, "checks": [vars(check) for check in checks]}


def run_cut(size: Size, dtype: str, folder: Path) -> dict[str, Any]:
    """SubNets of other schedules, written as files next to the weights."""
    clock, bundle = Clock(), load_bundle(folder / "bundle")
    seconds: list[float] = []
    contract, master = bundle.manifest.contract, bundle.denoiser / "master.onnx"
    with clock.part("cut"):
        for seed in range(3):
            schedule = schedule_by_rule(bundle.blocks, contract, SearchOptions("random", 0.7, seed=seed))
            program = lower(schedule, bundle.blocks, read_sampler(contract.sampler))
            for graph in program.graphs[:3]:
                started = time.perf_counter()
                part = cut_program(master, replace(program, graphs=(graph,)), bundle.blocks)
                (bundle.denoiser / f"further_{len(seconds)}.onnx").write_bytes(part[graph.name])
                seconds.append(time.perf_counter() - started)
    return {"parts": clock.parts, "subnet_seconds": seconds, "subnet_seconds_worst": max(seconds)}


def run_meta(size: Size, dtype: str, folder: Path) -> dict[str, Any]:
    """BlockGraph, MACs, slots and lowering of a model without weights."""
    clock = Clock()
    with clock.part("trace"):
        model = _model(size, dtype, "meta")
        blocks = trace(model).blocks
    guidance = read_random_config(size.config).guidance or "none"
    contract = make_contract(model, steps=50, guidance=guidance)
    program = lower(
        schedule_by_rule(blocks, contract, SearchOptions("uniform", 0.8)), blocks, read_sampler(contract.sampler)
    )
    return {**_counts(size, model, blocks), "parts": clock.parts, "slot_bytes": memory_bytes(program, 1)["slots"]}


STAGES: dict[str, Callable[[Size, str, Path], dict[str, Any]]] = {
    "trace": run_trace,
    "check": run_check,
    "cut": run_cut,
    "meta": run_meta,
}


def measure(case: Case) -> dict[str, Any]:
    """All stages of a case, each in a process of its own, in one temporary folder."""
    size = SIZES[case.name]
    row: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp(prefix="full_size_"))
    try:
        for stage in size.stages:
            if stage == "check" and case.dtype == "float16":
                continue
            document = _in_process(stage, case, folder)
            parts |= document.pop("parts")
            row |= document
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"config": size.config, "changed": size.changed, "stages": parts, **row}


def _in_process(stage: str, case: Case, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--stage", stage, "--dtype", case.dtype, "--folder", str(folder), case.name]
    print(f"{case.name} {case.dtype}: {stage} …", file=sys.stderr, flush=True)
    environment = {**os.environ, "DIPGO_CACHE": str(folder / "cache")}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def main() -> None:
    """Measure the named cases, or run one stage of a case as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*SIZES, []], default=[])
    parser.add_argument("--dtype", choices=["float32", "float16"])
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(STAGES[arguments.stage](SIZES[arguments.names[0]], arguments.dtype, arguments.folder)))
        return
    chosen = [c for c in CASES if c.name in (arguments.names or SIZES) and c.dtype in (arguments.dtype or c.dtype)]
    for row in completed(RESULTS, chosen, measure):
        print(json.dumps(row))


if __name__ == "__main__":
    main()

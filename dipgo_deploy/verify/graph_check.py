"""One call of every distinct graph beside PyTorch: what of a verification is affordable at full size.

1. The program runs on the live model until every graph has had its first call; what those calls read and gave is kept.
2. The live model goes, and each graph is loaded by ONNX Runtime, fed the same slots and called once. One session lives
   at a time, and all of them map the one weights file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Run
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.open import onnxruntime_class, open_session
from dipgo_deploy.verify.deviation import relative_difference

__all__ = ["FirstCall", "GraphCheck", "check_graphs", "record_first_calls"]


@dataclass(frozen=True)
class FirstCall:
    """The first call of a graph on PyTorch: its inputs and outputs by slot, and its seconds."""

    run: Run
    given: Mapping[str, np.ndarray]
    found: Mapping[str, np.ndarray]
    seconds: float


@dataclass(frozen=True)
class GraphCheck:
    """A graph's first call on ONNX Runtime: its worst output relative to the largest wanted value, and its seconds."""

    graph: str
    step: int
    output: str
    relative: float
    seconds: float
    torch_seconds: float


def record_first_calls(bundle: Bundle, images: int = 1, seed: int = 1000) -> list[FirstCall]:
    """Run the bundle's subnets program on PyTorch until each of its graphs has been called once.

    A call leaves its inputs as they were, so that they are read after it.
    Raises InputError for a bundle of the layout segments, whose graphs the live model cannot run.
    """
    contract, program = bundle.manifest.contract, bundle.program
    if program.layout != "subnets":
        raise InputError(f"{bundle.folder} has layout {program.layout}, subnets are compared: export it so")
    session = open_session(bundle, images, RunOptions("torch"), guidance_scale=contract.guidance_scale(None))
    inputs = run_inputs(bundle.model, contract, range(seed, seed + images))
    calls: list[FirstCall] = []
    waiting = {graph.name for graph in program.graphs}
    started = time.perf_counter()
    for _, call in session.iterate(*inputs, seed=seed):
        seconds = time.perf_counter() - started
        if isinstance(call, Run) and call.graph in waiting:
            waiting.discard(call.graph)
            given, found = ({slot: session.slot(slot) for _, slot in ends} for ends in (call.inputs, call.outputs))
            calls.append(FirstCall(call, given, found, seconds))
        if not waiting:
            break
        started = time.perf_counter()
    return calls


def check_graphs(
    bundle: Bundle, images: int = 1, *, seed: int = 1000, threads: int | None = None
) -> Iterator[GraphCheck]:
    """Compare the first call of every graph, in order of execution; see ``record_first_calls``."""
    # Of a copy, which alone loads the live model: it goes with it.
    for call in record_first_calls(replace(bundle), images, seed):
        yield _checked(bundle, call, images, threads)


def _checked(bundle: Bundle, call: FirstCall, images: int, threads: int | None) -> GraphCheck:
    run, sizes = call.run, bundle.manifest.contract.sizes(images)
    runner = onnxruntime_class()(bundle.compiled.graphs, bundle.denoiser, threads=threads)
    specs = {spec.name: spec for spec in bundle.program.slots}
    buffers = {slot: runner.allocate(specs[slot], sizes) for _, slot in (*run.inputs, *run.outputs)}
    for slot, array in call.given.items():
        runner.write(buffers[slot], array)
    act = runner.bind_run(run, buffers, sizes)
    started = time.perf_counter()
    act()
    seconds = time.perf_counter() - started
    differences = {
        name: relative_difference(runner.read(buffers[slot]), call.found[slot]) for name, slot in run.outputs
    }
    worst = max(differences, key=differences.__getitem__)
    return GraphCheck(run.graph, run.step, worst, differences[worst], seconds, call.seconds)

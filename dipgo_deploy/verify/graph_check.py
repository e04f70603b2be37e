"""Compare one call of every distinct graph with PyTorch: a verification that is affordable at full model size.

1. The program runs on the live model until every graph has been called once. Their inputs and outputs are kept.
2. The live model is released. ONNX Runtime loads one graph at a time and calls it once with the same inputs. All graphs
   map the same weights file, so memory holds the weights only once.
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
    """The first call of a graph on PyTorch.

    Attributes:
        run: the call.
        inputs: by slot.
        outputs: by slot.
        seconds: of the call.
    """

    run: Run
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    seconds: float


@dataclass(frozen=True)
class GraphCheck:
    """The comparison of a graph's first call on ONNX Runtime with PyTorch.

    Attributes:
        graph: its name.
        step: of the call.
        output: the output with the largest deviation.
        relative: that deviation, relative to the largest reference value.
        seconds: of the call on ONNX Runtime.
        torch_seconds: of the call on PyTorch.
    """

    graph: str
    step: int
    output: str
    relative: float
    seconds: float
    torch_seconds: float


def record_first_calls(bundle: Bundle, images: int = 1, seed: int = 1000) -> list[FirstCall]:
    """Run the bundle on PyTorch until each of its graphs has been called once.

    Args:
        bundle: a bundle in layout ``subnets``. The live model cannot run segments.
        images: images of the run.
        seed: of the first image.

    Returns:
        The first call of every graph, in order of execution.

    Raises:
        InputError: the bundle has another layout.
    """
    contract, program = bundle.contract, bundle.program
    if program.layout != "subnets":
        raise InputError(
            f"{bundle.folder} has layout {program.layout}, but only subnets are compared: export it with layout subnets"
        )
    session = open_session(bundle, images, RunOptions("torch"), guidance_scale=contract.guidance_scale(None))
    inputs = run_inputs(bundle.model, contract, range(seed, seed + images))
    calls: list[FirstCall] = []
    waiting = {graph.name for graph in program.graphs}
    started = time.perf_counter()
    for _, call in session.iterate(*inputs, seed=seed):
        seconds = time.perf_counter() - started
        if isinstance(call, Run) and call.graph in waiting:
            waiting.discard(call.graph)
            # A call does not change its inputs, so they can be read after it.
            inputs_read, outputs = (
                {slot: session.slot(slot) for _, slot in names} for names in (call.inputs, call.outputs)
            )
            calls.append(FirstCall(call, inputs_read, outputs, seconds))
        if not waiting:
            break
        started = time.perf_counter()
    return calls


def check_graphs(
    bundle: Bundle, images: int = 1, *, seed: int = 1000, threads: int | None = None
) -> Iterator[GraphCheck]:
    """Compare the first call of every graph on ONNX Runtime with PyTorch.

    Args:
        bundle: a bundle in layout ``subnets``.
        images: images of the run.
        seed: of the first image.
        threads: threads of ONNX Runtime within an operator.

    Yields:
        One comparison for each graph, in order of execution.

    Raises:
        InputError: the bundle has another layout.
    """
    # A copy of the bundle loads the live model, so that the model's memory is released with the copy.
    for call in record_first_calls(replace(bundle), images, seed):
        yield _check_graph(bundle, call, images, threads)


def _check_graph(bundle: Bundle, call: FirstCall, images: int, threads: int | None) -> GraphCheck:
    run, sizes = call.run, bundle.contract.sizes(images)
    backend = onnxruntime_class()(bundle.compiled.graphs, bundle.denoiser, threads=threads)
    specs = {spec.name: spec for spec in bundle.program.slots}
    buffers = {slot: backend.allocate(specs[slot], sizes) for _, slot in (*run.inputs, *run.outputs)}
    for slot, array in call.inputs.items():
        backend.write(buffers[slot], array)
    bound_call = backend.bind_run(run, buffers, sizes)
    started = time.perf_counter()
    bound_call()
    seconds = time.perf_counter() - started
    differences = {
        name: relative_difference(backend.read(buffers[slot]), call.outputs[slot]) for name, slot in run.outputs
    }
    worst = max(differences, key=differences.__getitem__)
    return GraphCheck(run.graph, run.step, worst, differences[worst], seconds, call.seconds)

"""Overhead of the interpreter over bare ONNX Runtime calls, on a network that costs nearly nothing.

A program of network calls and sampler updates runs through a Session. The bare calls run for comparison: the same
bindings and combinations, in the tightest Python loop. The last line printed is JSON, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from dipgo_deploy.core.blocks import ZERO_MACS
from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.program import Call, Combine, Graph, Program, Run, Term
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from dipgo_deploy.runtime.session import Session

SHAPE = (1, 4, 4)


def tiny_graph() -> bytes:
    """An ONNX graph that adds its timestep to its latent."""
    shape = ["rows", *SHAPE]
    nodes = [
        helper.make_node("Unsqueeze", ["timestep", "axes"], ["t"]),
        helper.make_node("Add", ["sample", "t"], ["e"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["rows"]),
        ],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, shape)],
        [helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def program_of(steps: int) -> Program:
    """``steps`` network calls, each followed by a linear update."""
    contract = Contract("Tiny", "", "float32", SamplerSpec("", "{}", steps, (1.0,) * steps), "none", SHAPE)
    slots = tuple(TensorSpec(name, ("batch", *SHAPE), "float32") for name in ("noise", "x", "y", "e"))
    calls: list[Call] = []
    latent, target = "noise", "x"
    for step in range(steps):
        calls.append(Run("g", step, float(step), (("sample", latent),), (("e", "e"),)))
        calls.append(Combine(target, (Term(latent, 0.5), Term("e", 0.1)), step))
        latent, target = target, "y" if target == "x" else "x"
    graph = Graph("g", "main", (), ("sample", "timestep"), (), ("e",), (), ZERO_MACS, 0)
    return Program(contract, "", "output", "subnets", (graph,), slots, tuple(calls), "noise", latent, ())


def fastest_us(act: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Shortest and median time of ``act`` in microseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        act()
        times.append((time.perf_counter_ns() - start) / 1e3)
    return min(times), statistics.median(times)


def bare_runs(session: Session, graph: bytes, steps: int) -> Callable[[], None]:
    """The network calls alone, on an inference session and a binding made by hand."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    bare = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rows = np.zeros((session.batch, *SHAPE), np.float32)
    out, times = np.empty_like(rows), np.ones(session.batch, np.float32)
    binding = bare.io_binding()
    for name, array in (("sample", rows), ("timestep", times)):
        binding.bind_cpu_input(name, array)
    binding.bind_output("e", "cpu", 0, np.float32, out.shape, out.ctypes.data)

    def act() -> None:
        for _ in range(steps):
            bare.run_with_iobinding(binding)

    return act


def measure(steps: int, repeats: int, batch: int) -> dict[str, object]:
    """Time a run of the session, its combinations, and bare network calls, per call of the program."""
    program, graph = program_of(steps), tiny_graph()
    with tempfile.TemporaryDirectory() as folder:
        session = Session(program, OnnxRuntimeBackend({"g": graph}, Path(folder), threads=1), batch)
    noise = np.random.default_rng(0).standard_normal((batch, *SHAPE)).astype(np.float32)
    combines = [act for call, act in zip(program.calls, session.calls, strict=True) if isinstance(call, Combine)]

    def combine_all() -> None:
        for act in combines:
            act()

    acts = {
        "session": lambda: session.run(noise, {}),
        "bare_runs": bare_runs(session, graph, steps),
        "combines": combine_all,
    }
    timings = {name: fastest_us(act, repeats) for name, act in acts.items()}
    extra = [timings["session"][i] - timings["bare_runs"][i] - timings["combines"][i] for i in (0, 1)]
    return {
        "calls": len(program.calls),
        "repeats": repeats,
        "session_us": round(timings["session"][1], 1),
        "bare_runs_us": round(timings["bare_runs"][1], 1),
        "combines_us": round(timings["combines"][1], 1),
        "overhead_us_per_call": round(extra[1] / len(program.calls), 3),
        "overhead_us_per_call_fastest": round(extra[0] / len(program.calls), 3),
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.machine(),
    }


def main() -> None:
    """Parse options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="network calls of a run")
    parser.add_argument("--repeats", type=int, default=200, help="runs timed")
    parser.add_argument("--batch", type=int, default=1, help="images of a run")
    options = parser.parse_args()
    print(json.dumps(measure(options.steps, options.repeats, options.batch)))


if __name__ == "__main__":
    main()

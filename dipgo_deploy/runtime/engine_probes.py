"""Engines of programs that are only measured: built for this machine's GPU from a trace, without a bundle.

Graphs of equal content are built once for as long as their engines stand, whatever programs run them (trt/store.py
finds them by digest).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.disk import sha256_of, write_atomic
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.program import Program
from dipgo_deploy.graphs.cut import cut_program
from dipgo_deploy.graphs.trace import Trace
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.runtime.opened import work_bytes
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from dipgo_deploy.trt.build import build_engines
from dipgo_deploy.trt.job import BuildFlags
from dipgo_deploy.trt.program_jobs import Machine, program_jobs
from dipgo_deploy.trt.store import forget_built
from dipgo_deploy.trt.target import load_target

__all__ = ["EngineProbes"]


class EngineProbes:
    """Builds and opens engines of programs cut from ``trace``, for calls of ``batch`` images and no others.

    ``folder`` takes graphs and engines; who made it removes it. Raises MissingError where ``target`` cannot run here.
    """

    def __init__(self, trace: Trace, target: str, batch: int, folder: Path) -> None:
        found = load_target(target, "run")
        images = BatchRange(batch, batch, batch)
        self._machine = Machine(found, found.check_gpus(()), images, BuildFlags(static=True))
        self._trace, self._folder = trace, folder
        weights = folder / WEIGHTS_FILE
        if not weights.exists():
            weights.symlink_to(trace.weights.absolute())
        self._weights_digest = sha256_of(weights)
        self._opened = 0
        self._built: dict[Path, EngineRecord] = {}

    def build(self, program: Program) -> Iterator[EngineRecord | TensorRTBackend]:
        """Make the engines of ``program`` stand; yields the record of each, and lastly the backend that runs them.

        Raises InputError where a graph cannot be built.
        """
        home = self._folder / f"program_{self._opened:02}"
        self._opened += 1
        graphs = {}
        for name, content in cut_program(self._trace.master, program, self._trace.blocks).items():
            graphs[name] = self._folder / f"{home.name}_{name}.onnx"  # beside the weights, where they are looked for
            write_atomic(graphs[name], content)
        jobs = program_jobs(program, graphs, self._weights_digest, self._machine, home)
        records = []
        for step in build_engines(jobs):
            records.append(step.record)
            self._built[home / f"{step.record.graph}.engine"] = step.record
            yield step.record
        files = {name: home / f"{name}.engine" for name in graphs}
        target, rows = self._machine.target, program.contract.sizes(self._machine.batch.opt)["rows"]
        yield TensorRTBackend(target.module, files, reserve=work_bytes(records, rows), name=target.name)

    def drop(self) -> None:
        """Remove the engine files: those that are in memory go on."""
        for engine, record in self._built.items():
            forget_built(engine, record)
            engine.unlink(missing_ok=True)
        self._built.clear()

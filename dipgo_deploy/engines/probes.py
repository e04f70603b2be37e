"""Probe programs of a profile, and their engines.

The probe programs are those of random schedules and of the full run, in every layout of the backend. The schedules
reuse outputs and residuals, few and many, so that the timed calls are like those of later schedules.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import BatchRange, Contract
from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.progress import Progress
from dipgo_deploy.core.schedule import Schedule, full_schedule
from dipgo_deploy.graphs.cut import cut_program
from dipgo_deploy.graphs.trace import Trace
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.runtime.open import shared_bytes
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.trt.build import build_engines
from dipgo_deploy.trt.job import BuildFlags, graph_tensors
from dipgo_deploy.trt.program_jobs import Machine, program_jobs
from dipgo_deploy.trt.store import forget_built
from dipgo_deploy.trt.target import load_target

__all__ = ["ProbeEngines", "group_by_memory", "probe_programs"]

_KEEPS = (0.3, 0.5, 0.7, 0.5)
"""Share of entries that each random schedule computes. The kinds of reuse alternate."""


def probe_programs(blocks: BlockGraph, contract: Contract, layouts: Sequence[Layout], seed: int) -> list[Program]:
    """The programs to time.

    Args:
        blocks: of the model.
        contract: sampler, steps and guidance.
        layouts: the layouts that the backend runs.
        seed: of the random schedules.

    Returns:
        Programs of random schedules in every layout, and of the full run.
    """
    rng = np.random.default_rng(seed)
    has_residual = any(block.residual_input is not None for block in blocks.blocks)
    kinds: tuple[Kind, ...] = ("output", "residual") if has_residual else ("output",)
    schedules = [
        random_schedule(blocks, contract, kinds[index % len(kinds)], rng, keep) for index, keep in enumerate(_KEEPS)
    ]
    programs = [_lower(schedule, blocks, layout) for schedule in schedules for layout in layouts]
    full = full_schedule(contract, blocks.granularity, "output", blocks.block_names)
    return [*programs, _lower(full, blocks, "subnets")]


def _lower(schedule: Schedule, blocks: BlockGraph, layout: Layout) -> Program:
    return lower(schedule, blocks, read_sampler(schedule.contract.sampler), LowerOptions(layout=layout))


def group_by_memory(programs: Sequence[Program], limit: int) -> Iterator[list[Program]]:
    """Programs in groups whose weights fit a limit together. A program beyond the limit is a group of its own.

    Args:
        programs: the programs, whose order is kept.
        limit: bytes of weights of a group.

    Yields:
        The groups.
    """
    group: list[Program] = []
    group_bytes = 0
    for program in programs:
        weights = sum(graph.weight_bytes for graph in program.graphs)
        if group and group_bytes + weights > limit:
            yield group
            group, group_bytes = [], 0
        group.append(program)
        group_bytes += weights
    yield group


class ProbeEngines:
    """Engines of programs that are only measured, built from a trace for this machine's GPU.

    Graphs of equal content are built once while their engines exist, because trt/store.py finds engines by digest.

    Args:
        trace: the trace behind the programs.
        target: ``tensorrt`` or ``rtx``.
        batch: images of a call. The engines take no other number.
        folder: a folder for graphs and engines. The caller removes the folder.

    Raises:
        MissingError: the target cannot run here.
    """

    def __init__(self, trace: Trace, target: str, batch: int, folder: Path) -> None:
        library = load_target(target, "run")
        images = BatchRange(batch, batch, batch)
        self._machine = Machine(library, library.check_gpus(()), images, BuildFlags(static=True))
        self._trace, self._folder = trace, folder
        weights = folder / WEIGHTS_FILE
        if not weights.exists():
            weights.symlink_to(trace.weights.absolute())
        self._weights_digest = sha256_of(weights)
        self._programs = 0
        self._built: dict[Path, EngineRecord] = {}

    def build(self, program: Program) -> Generator[Progress, None, TensorRTBackend]:
        """Build the engines of a program.

        Args:
            program: cut from the trace.

        Returns:
            The backend that runs the engines. The generator yields Progress.

        Raises:
            InputError: a graph cannot be built.
        """
        home = self._folder / f"program_{self._programs:02}"
        self._programs += 1
        graphs = {}
        for name, content in cut_program(self._trace.master, program, self._trace.blocks).items():
            graphs[name] = self._folder / f"{home.name}_{name}.onnx"  # ONNX looks for weights next to the graph.
            write_atomic(graphs[name], content)
        engines = yield from build_engines(program_jobs(program, graphs, self._weights_digest, self._machine, home))
        records = [engine.record for engine in engines]
        self._built |= {home / f"{record.graph}.engine": record for record in records}
        files = {name: home / f"{name}.engine" for name in graphs}
        target, sizes = self._machine.target, program.contract.sizes(self._machine.batch.opt)
        reserve = shared_bytes(records, graph_tensors(program), sizes)
        return TensorRTBackend(target.module, files, reserve=reserve, name=target.name)

    def drop(self) -> None:
        """Remove the engine files. Engines in device memory keep running."""
        for engine, record in self._built.items():
            forget_built(engine, record)
            engine.unlink(missing_ok=True)
        self._built.clear()

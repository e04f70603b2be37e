"""Profile: what the pieces of a model cost, fitted to calls that are timed inside whole trajectories.

1. Probes (runtime/probes.py) are programs that schedules would really run, so that caches are as they will be.
2. Round after round every program runs once, call by call between two marks of a clock.
3. The medians are fitted (runtime/latency_fit.py).

Programs are loaded together as far as their weights fit ``memory_bytes``: rounds then mix all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any, Literal, get_args

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.graphs.cut import cut_program
from dipgo_deploy.graphs.trace import Trace
from dipgo_deploy.models import LoadedModel, make_contract
from dipgo_deploy.runtime.backend import Backend
from dipgo_deploy.runtime.clock import Clock, clock_for
from dipgo_deploy.runtime.environment import environment
from dipgo_deploy.runtime.inputs import run_inputs
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.latency_fit import Timed, fit_latencies
from dipgo_deploy.runtime.loaded import onnxruntime_class
from dipgo_deploy.runtime.probes import loaded_together, probe_programs
from dipgo_deploy.runtime.torch_backend import TorchBackend

__all__ = [
    "ProfileOptions",
    "ProfileProgress",
    "Target",
    "medians",
    "profile",
    "table_of",
    "timed_call_by_call",
]

Target = Literal["onnxruntime-cpu", "onnxruntime-cuda", "torch-cpu", "torch-cuda"]
"""Backends and devices that a table can be measured on without building engines first."""


@dataclass(frozen=True)
class ProfileOptions:
    """Target, images of a call, guidance layout and sizes of one profile.

    ``rounds`` are timed, after one to warm up; ``steps`` are those of every random schedule, drawn from ``seed``;
    ``threads`` of ONNX Runtime, None for its own choice; programs whose weights exceed ``memory_bytes`` together are
    timed apart. Raises UsageError for a value that makes no sense.
    """

    target: str = "onnxruntime-cpu"
    batch: int = 8
    guidance: Guidance = "none"
    rounds: int = 10
    steps: int = 12
    seed: int = 0
    threads: int | None = None
    memory_bytes: int = 4 * 2**30
    command: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        if self.target not in get_args(Target):
            raise UsageError(f"target {self.target!r} cannot be profiled: choose one of {', '.join(get_args(Target))}")
        for name, least in {"batch": 1, "rounds": 1, "steps": 2, "seed": 0}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} {getattr(self, name)} makes no sense: give {least} or more")

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.target.rpartition("-")[2]


@dataclass(frozen=True)
class ProfileProgress:
    """``done`` of ``total`` rounds."""

    done: int
    total: int


def profile(model: LoadedModel, trace: Trace, options: ProfileOptions) -> Iterator[ProfileProgress | LatencyTable]:
    """Measure ``model``, traced as ``trace``; yields its progress and lastly the table.

    Raises MissingError where the target's device or library is missing, UsageError for a model without weights.
    """
    if not model.has_weights:
        raise UsageError(f"this {model.class_name} has shapes alone, a profile runs it: load it with its weights")
    contract = make_contract(model, steps=options.steps, guidance=options.guidance)
    layouts: Sequence[Layout] = ("subnets", "segments") if options.target.startswith("onnxruntime") else ("subnets",)
    programs = probe_programs(trace.blocks, contract, layouts, options.seed)
    groups = list(loaded_together(programs, options.memory_bytes))
    timed: list[Timed] = []
    clock = clock_for(options.device)
    for index, group in enumerate(groups):
        sessions = [_session(model, trace, program, options) for program in group]
        marks: list[list[list[float]]] = [[] for _ in group]
        for done in range(options.rounds + 1):
            for session, rounds in zip(sessions, marks, strict=True):
                rounds.append(timed_call_by_call(session, model, clock))
            yield ProfileProgress(index * (options.rounds + 1) + done + 1, len(groups) * (options.rounds + 1))
        timed += [medians(program, rounds[1:]) for program, rounds in zip(group, marks, strict=True)]
    yield table_of(timed, trace.blocks, options)


def _session(model: LoadedModel, trace: Trace, program: Program, options: ProfileOptions) -> Session:
    backend: Backend
    if options.target.startswith("torch"):
        backend = TorchBackend(model, trace.blocks, program, device=options.device)
    else:
        graphs = cut_program(trace.master, program, trace.blocks)
        backend = onnxruntime_class()(graphs, trace.folder, threads=options.threads, device=options.device)
    return Session(program, backend, options.batch, program.contract.guidance_scale(None))


def timed_call_by_call(session: Session, model: LoadedModel, clock: Clock) -> list[float]:
    """Run once; milliseconds of every call, and lastly of the whole run."""
    session.begin(*run_inputs(model, session.program.contract, range(session.batch)))
    with session.backend.running():
        marks = [clock.mark()]
        for act in session.calls:
            act()
            marks.append(clock.mark())
    spans = [clock.elapsed_ms(first, second) for first, second in pairwise(marks)]
    return [*spans, clock.elapsed_ms(marks[0], marks[-1])]


def medians(program: Program, rounds: Sequence[Sequence[float]]) -> Timed:
    """The median of every call, and of the whole run, over rounds of `timed_call_by_call`."""
    *calls, whole = (median(times) for times in zip(*rounds, strict=True))
    return Timed(program, tuple(calls), whole)


def table_of(timed: Sequence[Timed], blocks: BlockGraph, options: ProfileOptions) -> LatencyTable:
    """The table that timed programs give."""
    fit = fit_latencies(timed, blocks, options.batch)
    contract = timed[0].program.contract
    table = LatencyTable(
        model_class=blocks.model_class,
        model_digest=blocks.model_digest,
        granularity=blocks.granularity,
        patterns=blocks.patterns,
        dtype=blocks.dtype,
        target=options.target,
        batch=options.batch,
        rows=options.batch * contract.rows_per_image,
        threads=options.threads,
        blocks_ms={},
        forward_ms=0.0,
        environment=_environment(options),
        **asdict(fit),
    )
    return _with_blocks(table, blocks)


def _with_blocks(table: LatencyTable, blocks: BlockGraph) -> LatencyTable:
    prices = table.prices_ms(blocks)
    owners: dict[int, set[str | None]] = {
        piece.index: {blocks.block_of_feature.get(value) for value in piece.gives} for piece in blocks.pieces
    }
    by_block = {
        name: sum(prices[index] for index, owner in owners.items() if owner == {name}) for name in blocks.block_names
    }
    return replace(table, blocks_ms=by_block, forward_ms=sum(prices) + table.call_ms)


def _environment(options: ProfileOptions) -> Mapping[str, Any]:
    settings = asdict(options)
    return {**environment(), "command": settings.pop("command"), "profile": settings}

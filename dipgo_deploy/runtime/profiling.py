"""Profile: what the pieces of a model cost, fitted to calls that are timed inside whole trajectories.

1. Probes (runtime/probes.py) are programs that schedules would really run, so that caches are as they will be.
2. Round after round every program runs once, call by call between two marks of a clock.
3. The medians are fitted (runtime/latency_fit.py).

Programs are loaded together as far as their weights fit ``memory_bytes``: rounds then mix all of them. Targets that
run engines have theirs built first, in a folder that is gone afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.graphs.cut import cut_program
from dipgo_deploy.graphs.trace import Trace, cache_folder
from dipgo_deploy.graphs.variant import half_trace
from dipgo_deploy.models import LoadedModel, make_contract
from dipgo_deploy.runtime.backend import Backend
from dipgo_deploy.runtime.clock import Clock, clock_for
from dipgo_deploy.runtime.engine_probes import EngineProbes
from dipgo_deploy.runtime.environment import environment
from dipgo_deploy.runtime.inputs import run_inputs
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.latency_fit import Timed, fit_latencies
from dipgo_deploy.runtime.loaded import onnxruntime_class
from dipgo_deploy.runtime.probes import loaded_together, probe_programs
from dipgo_deploy.runtime.profile_options import ProfileOptions, ProfileProgress
from dipgo_deploy.runtime.torch_backend import TorchBackend

__all__ = ["medians", "profile", "table_of", "timed_call_by_call"]


def profile(model: LoadedModel, trace: Trace, options: ProfileOptions) -> Iterator[ProfileProgress | LatencyTable]:
    """Measure ``model``, traced as ``trace``; yields its progress and lastly the table.

    Raises MissingError where the target's device or library is missing, UsageError for a model without weights or one
    that is in half precision already and shall be converted, GateError for a weight that half precision cannot hold,
    InputError where an engine cannot be built.
    """
    if not model.has_weights:
        raise UsageError(f"this {model.class_name} has shapes alone, a profile runs it: load it with its weights")
    if options.precision is not None and model.dtype != "float32":
        raise UsageError(f"the model is in {model.dtype}: leave --fp16 and --bf16 out, or load it in float32")
    contract = make_contract(model, steps=options.steps, guidance=options.guidance)
    options = replace(options, guidance=contract.guidance)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="profile_") as folder:
        if options.precision is not None:
            trace = half_trace(trace, options.precision, Path(folder))
        timed: list[Timed] = []
        for step in _timed(model, trace, replace(contract, dtype=trace.blocks.dtype), options, Path(folder)):
            if isinstance(step, Timed):
                timed.append(step)
            else:
                yield step
        yield table_of(timed, trace.blocks, options)


def _timed(
    model: LoadedModel, trace: Trace, contract: Contract, options: ProfileOptions, folder: Path
) -> Iterator[ProfileProgress | Timed]:
    """Every probe program, timed; ``folder`` is for engines."""
    layouts: Sequence[Layout] = ("subnets",) if options.target.startswith("torch") else ("subnets", "segments")
    programs = probe_programs(trace.blocks, contract, layouts, options.seed)
    groups = list(loaded_together(programs, options.memory_bytes))
    engines = EngineProbes(trace, options.target, options.batch, folder) if options.on_engines else None
    clock = clock_for(options.device)
    done, built, total = 0, 0, len(groups) * (options.rounds + 1)
    for group in groups:
        sessions = []
        for program in group:
            for made in _backend(model, trace, program, options, engines):
                if isinstance(made, EngineRecord):
                    built += 1
                    yield ProfileProgress(done, total, built)
                else:
                    sessions.append(Session(program, made, options.batch, contract.guidance_scale(None)))
        marks: list[list[list[float]]] = [[] for _ in group]
        for _ in range(options.rounds + 1):
            for session, rounds in zip(sessions, marks, strict=True):
                rounds.append(timed_call_by_call(session, model, clock))
            done += 1
            yield ProfileProgress(done, total, built)
        if engines is not None:
            engines.drop()
        yield from (medians(program, rounds[1:]) for program, rounds in zip(group, marks, strict=True))


def _backend(
    model: LoadedModel, trace: Trace, program: Program, options: ProfileOptions, engines: EngineProbes | None
) -> Iterator[EngineRecord | Backend]:
    """What runs a program, after the record of each engine that was built for it."""
    if engines is not None:
        yield from engines.build(program)
    elif options.target.startswith("torch"):
        yield TorchBackend(model, trace.blocks, program, device=options.device)
    else:
        graphs = cut_program(trace.master, program, trace.blocks)
        yield onnxruntime_class()(graphs, trace.folder, threads=options.threads, device=options.device)


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
        latent_shape=contract.latent_shape,
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

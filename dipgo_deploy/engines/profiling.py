"""Profile: the cost of a model's pieces, fitted to calls that are timed inside whole trajectories.

1. Probe programs (engines/probes.py) are programs of random schedules, so caches behave as in later use.
2. In every round each program runs once. A clock is read before and after every call.
3. Costs are fitted to the medians (engines/latency_fit.py).

Programs are loaded together as long as their weights fit ``memory_bytes``, so that rounds mix all programs. Backends
that run engines get engines of the probe programs first, in a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.disk import cache_folder
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.engines.latency_fit import TimedProgram, latency_table
from dipgo_deploy.engines.options import ProfileOptions
from dipgo_deploy.engines.probes import ProbeEngines, group_by_memory, probe_programs
from dipgo_deploy.graphs.cut import cut_program
from dipgo_deploy.graphs.half_weights import half_trace
from dipgo_deploy.graphs.trace import Trace
from dipgo_deploy.models import LoadedModel, make_contract
from dipgo_deploy.runtime.backend import Backend
from dipgo_deploy.runtime.clock import Clock, clock_for
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.open import onnxruntime_class
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.runtime.torch_backend import TorchBackend

__all__ = ["median_times", "profile", "time_calls"]


def profile(model: LoadedModel, trace: Trace, options: ProfileOptions) -> Work[LatencyTable]:
    """Measure what the pieces of a model cost on this machine.

    Args:
        model: the model, with weights.
        trace: its trace.
        options: backend, batch and number of rounds.

    Returns:
        The latency table. The generator yields Progress.

    Raises:
        MissingError: the device or a library is missing.
        UsageError: a model without weights, or one in half precision that would be converted again.
        GateError: a weight is beyond the half precision.
        InputError: an engine cannot be built.
    """
    if not model.has_weights:
        raise UsageError(f"this {model.class_name} was loaded without weights, a profile runs it: load them too")
    if options.precision is not None and model.dtype != "float32":
        raise UsageError(f"the model is in {model.dtype}: leave precision out, or load the model in float32")
    contract = make_contract(
        model,
        sampler=options.sampler,
        sampler_options=options.sampler_options,
        steps=options.steps,
        guidance=options.guidance,
    )
    options = replace(options, guidance=contract.guidance)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="profile_") as folder:
        if options.precision is not None:
            trace = half_trace(trace, options.precision, Path(folder))
        contract = replace(contract, dtype=trace.blocks.dtype)
        timed = yield from _time_programs(model, trace, contract, options, Path(folder))
        return latency_table(timed, trace.blocks, options)


def _time_programs(
    model: LoadedModel, trace: Trace, contract: Contract, options: ProfileOptions, folder: Path
) -> Work[list[TimedProgram]]:
    """Time every probe program. ``folder`` takes engines."""
    layouts: Sequence[Layout] = ("subnets",) if options.run.backend == "torch" else ("subnets", "segments")
    programs = probe_programs(trace.blocks, contract, layouts, options.seed)
    groups = list(group_by_memory(programs, options.memory_bytes))
    engines = ProbeEngines(trace, options.run.backend, options.batch, folder) if options.run.on_engines else None
    clock = clock_for(options.run.device)
    done, total = 0, len(groups) * (options.rounds + 1)
    timed: list[TimedProgram] = []
    for group in groups:
        sessions = []
        for program in group:
            backend = yield from _backend(model, trace, program, options, engines)
            sessions.append(Session(program, backend, options.batch, contract.guidance_scale(None)))
        rounds: list[list[list[float]]] = [[] for _ in group]
        for _ in range(options.rounds + 1):
            for session, times in zip(sessions, rounds, strict=True):
                times.append(time_calls(session, model, clock))
            done += 1
            yield Progress("timing", done, total, f"round {done} of {total}")
        if engines is not None:
            engines.drop()
        timed += [median_times(program, times[1:]) for program, times in zip(group, rounds, strict=True)]
    return timed


def _backend(
    model: LoadedModel, trace: Trace, program: Program, options: ProfileOptions, engines: ProbeEngines | None
) -> Generator[Progress, None, Backend]:
    """The backend of a program. Engines are built first."""
    if engines is not None:
        backend: Backend = yield from engines.build(program)
        return backend
    if options.run.backend == "torch":
        return TorchBackend(model, trace.blocks, program, device=options.run.device)
    graphs = cut_program(trace.master, program, trace.blocks)
    return onnxruntime_class()(graphs, trace.folder, threads=options.run.threads, device=options.run.device)


def time_calls(session: Session, model: LoadedModel, clock: Clock) -> list[float]:
    """Run once and time every call.

    Args:
        session: the session to run.
        model: gives the inputs.
        clock: of the session's device.

    Returns:
        Milliseconds of every call, and then of the whole run.
    """
    session.begin(*run_inputs(model, session.program.contract, range(session.batch)))
    with session.backend.running():
        marks = [clock.mark()]
        for call in session.calls:
            call()
            marks.append(clock.mark())
    spans = [clock.elapsed_ms(first, second) for first, second in pairwise(marks)]
    return [*spans, clock.elapsed_ms(marks[0], marks[-1])]


def median_times(program: Program, rounds: Sequence[Sequence[float]]) -> TimedProgram:
    """The median time of every call and of the whole run.

    Args:
        program: the program that ran.
        rounds: what ``time_calls`` returned, round by round.

    Returns:
        The medians.
    """
    *calls, whole = (median(times) for times in zip(*rounds, strict=True))
    return TimedProgram(program, tuple(calls), whole)

"""Build the engines of a set of graphs. Engines that are up to date stay, engines of other bundles are copied.

Each engine is built by a process of its own (trt/worker.py), which ends with this process. An engine is complete when
its record is written, so an interrupted build goes on at the next graph.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, UsageError
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.trt.job import EngineJob, job_to_json
from dipgo_deploy.trt.store import copy_engines, find_built, is_trusted, is_whole, note_built

__all__ = ["BuildStatus", "BuiltEngine", "build_engines", "drop_stale", "engine_path", "find_up_to_date"]

BuildStatus = Literal["up to date", "copied", "built"]
"""The build status of an engine: no work was needed, an engine of the same digest was copied, or it was built now."""

_ERRORS: dict[int, type[DipgoError]] = {2: UsageError, 3: InputError, 5: MissingError}
"""The error class of each exit code that a worker may end with."""


@dataclass(frozen=True)
class BuiltEngine:
    """The record of an engine on disk, and its build status."""

    record: EngineRecord
    status: BuildStatus


def build_engines(jobs: Sequence[EngineJob], workers: int = 1) -> Work[tuple[BuiltEngine, ...]]:
    """Build every engine that is not up to date. Engines that need no work come first.

    Args:
        jobs: the engines to build.
        workers: builds at a time.

    Returns:
        All engines, in the order in which they were finished. Progress counts bytes of ONNX graphs.

    Raises:
        UsageError: fewer than one worker.
        DipgoError: the first build that failed. Finished engines stay.
    """
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    sizes = {job.graph: max(1, Path(job.onnx).stat().st_size) for job in jobs}
    existing = {job.graph: find_up_to_date(job) for job in jobs}
    copy_engines({engine_path(job): path for job in jobs if isinstance(path := existing[job.graph], Path)})
    missing = [job for job in jobs if existing[job.graph] is None]
    engines: list[BuiltEngine] = []
    done = 0
    for job in jobs:
        if job not in missing:
            status: BuildStatus = "up to date" if existing[job.graph] == "up to date" else "copied"
            engines.append(BuiltEngine(load_engine_record(engine_path(job).with_suffix(".json")), status))
            done += sizes[job.graph]
            yield Progress("building engines", done, sum(sizes.values()), f"{job.graph} {status}")
    running: set[subprocess.Popen[str]] = set()
    pool = ThreadPoolExecutor(workers)
    try:
        futures: dict[Future[EngineRecord], EngineJob] = {pool.submit(_build, job, running): job for job in missing}
        for future in as_completed(futures):
            engines.append(BuiltEngine(future.result(), "built"))
            done += sizes[futures[future].graph]
            yield Progress("building engines", done, sum(sizes.values()), f"{futures[future].graph} built")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.kill()
        pool.shutdown(wait=True)
    return tuple(engines)


def engine_path(job: EngineJob) -> Path:
    """The engine file of a job, whether it exists or not."""
    return Path(job.folder) / f"{job.graph}.engine"


def find_up_to_date(job: EngineJob) -> Literal["up to date"] | Path | None:
    """Where a usable engine of a job is.

    Returns ``up to date`` where the job's own file is usable, the path of an engine with the same digest that was built
    on this machine, or None. Engines that others built do not count, because the preflight would refuse them.
    """
    record = _record_of(engine_path(job))
    if record is None or record.digest != job.digest or not is_trusted(record):
        return find_built(job.digest)
    return "up to date" if is_whole(engine_path(job), record) else find_built(job.digest)


def _record_of(engine: Path) -> EngineRecord | None:
    try:
        return load_engine_record(engine.with_suffix(".json"))
    except InputError:
        return None


def _build(job: EngineJob, running: set[subprocess.Popen[str]]) -> EngineRecord:
    folder = Path(job.folder)
    for directory in (folder, Path(job.timing_cache).parent):
        directory.mkdir(parents=True, exist_ok=True)
    record_file, log = folder / f"{job.graph}.json", folder / f"{job.graph}.log"
    record_file.unlink(missing_ok=True)
    log.unlink(missing_ok=True)  # Opening a link would write to the file that it points to.
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "dipgo_deploy.trt.worker", str(os.getpid())]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        running.add(process)
        _, errors = process.communicate(job_to_json(job))
        running.discard(process)
        stream.write(errors)
    if process.returncode:
        raise _failure(job, process.returncode, errors, log)
    record = load_engine_record(record_file)
    note_built(engine_path(job), record)
    return record


def _failure(job: EngineJob, code: int, errors: str, log: Path) -> DipgoError:
    """The error of a failed worker. TensorRT prints its own reason to the log, behind ``[E]``."""
    lines = [line.removeprefix("error: ") for line in errors.splitlines() if line.startswith("error: ")]
    if lines and code in _ERRORS:
        reasons = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("[E] ")]
        return _ERRORS[code](f"{lines[-1]}{': ' if reasons else ''}{' '.join(reasons[-1:])}: see {log}")
    end = f"signal {-code}" if code < 0 else f"exit code {code}"
    return InputError(f"the build of {job.graph} ended with {end}: see {log}")


def drop_stale(folder: Path, graphs: Sequence[str]) -> None:
    """Remove files of graphs that the program no longer has, and temporary files of a killed build.

    Args:
        folder: the folder of the engines.
        graphs: the names of the graphs that the program has.
    """
    for path in folder.iterdir():
        if path.name.startswith(".") or path.stem not in graphs:
            path.unlink()

"""Build the engines of a set of graphs: what stands is kept, what was built elsewhere taken over, the rest built.

Each engine is built by a process of its own (trt/worker.py) and complete when its record stands, so that an interrupted
build goes on at the next graph.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, UsageError
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.trt.job import EngineJob, job_to_json
from dipgo_deploy.trt.store import copies, find_built, is_trusted, is_whole, note_built

__all__ = ["BuildStep", "Outcome", "build_engines", "drop_stale", "engine_path", "standing"]

Outcome = Literal["kept", "copied", "built"]
"""What became of an engine: it stood already, one of the same digest was copied, or it was built now."""

_ERRORS: dict[int, type[DipgoError]] = {2: UsageError, 3: InputError, 5: MissingError}


@dataclass(frozen=True)
class BuildStep:
    """An engine that now stands, what became of it, and the share of the work that is done (0 to 1)."""

    record: EngineRecord
    outcome: Outcome
    share: float


def build_engines(jobs: Sequence[EngineJob], workers: int = 1) -> Iterator[BuildStep]:
    """Make every engine stand, ``workers`` at a time; yields each when it does, those that need no work first.

    Raises the error of the first build that fails; what was finished stays.
    """
    if workers < 1:
        raise UsageError(f"{workers} workers build nothing: ask for 1 or more")
    size = {job.graph: max(1, Path(job.onnx).stat().st_size) for job in jobs}
    done, total = 0, sum(size.values())
    found = {job.graph: standing(job) for job in jobs}
    copies({engine_path(job): path for job in jobs if isinstance(path := found[job.graph], Path)})
    left = [job for job in jobs if found[job.graph] is None]
    for job in jobs:
        if job not in left:
            done += size[job.graph]
            outcome: Outcome = "kept" if found[job.graph] == "kept" else "copied"
            yield BuildStep(load_engine_record(engine_path(job).with_suffix(".json")), outcome, done / total)
    running: set[subprocess.Popen[str]] = set()
    pool = ThreadPoolExecutor(workers)
    try:
        futures: dict[Future[EngineRecord], EngineJob] = {pool.submit(_built, job, running): job for job in left}
        for future in as_completed(futures):
            record = future.result()
            done += size[futures[future].graph]
            yield BuildStep(record, "built", done / total)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(running):
            process.kill()
        pool.shutdown(wait=True)


def engine_path(job: EngineJob) -> Path:
    """Where the engine of a job stands, or will."""
    return Path(job.folder) / f"{job.graph}.engine"


def standing(job: EngineJob) -> Literal["kept"] | Path | None:
    """``kept`` where the engine of a job stands, the place of one of its digest built here, or None.

    What others built does not stand: preflight would refuse it and ask for a build.
    """
    record = _record_beside(engine_path(job))
    if record is None or record.digest != job.digest or not is_trusted(record):
        return find_built(job.digest)
    return "kept" if is_whole(engine_path(job), record) else find_built(job.digest)


def _record_beside(engine: Path) -> EngineRecord | None:
    try:
        return load_engine_record(engine.with_suffix(".json"))
    except InputError:
        return None


def _built(job: EngineJob, running: set[subprocess.Popen[str]]) -> EngineRecord:
    folder = Path(job.folder)
    for place in (folder, Path(job.timing_cache).parent):
        place.mkdir(parents=True, exist_ok=True)
    record = folder / f"{job.graph}.json"
    record.unlink(missing_ok=True)
    log = folder / f"{job.graph}.log"
    log.unlink(missing_ok=True)  # a link would be written through
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "dipgo_deploy.trt.worker"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        running.add(process)
        _, errors = process.communicate(job_to_json(job))
        running.discard(process)
        stream.write(errors)
    if process.returncode:
        raise _failure(job, process.returncode, errors, log)
    found = load_engine_record(record)
    note_built(engine_path(job), found)
    return found


def _failure(job: EngineJob, code: int, errors: str, log: Path) -> DipgoError:
    lines = [line.removeprefix("error: ") for line in errors.splitlines() if line.startswith("error: ")]
    if lines and code in _ERRORS:
        words = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("[E] ")]
        return _ERRORS[code](f"{lines[-1]}{': ' if words else ''}{' '.join(words[-1:])}: see {log}")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return InputError(f"the build of {job.graph} ended with {how}: see {log}")


def drop_stale(folder: Path, graphs: Sequence[str]) -> None:
    """Remove what belongs to graphs that the program no longer has, and what a killed build has left."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.stem not in graphs:
            path.unlink()

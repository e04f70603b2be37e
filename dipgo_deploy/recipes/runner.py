"""Running a recipe, stage after stage. A stage whose inputs and outputs are unchanged is skipped.

1. The recipe is checked as a whole, and every target that is to be built, before the first stage runs.
2. The inputs of a stage are recorded before the stage runs, its outputs afterwards. After an interruption, the next
   run resumes the stage if the stage supports that, and otherwise starts the stage again.
3. A stage runs again if an input changed, or if an output was changed or deleted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from dipgo_deploy.core.disk import check_target
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.recipes import model_calls
from dipgo_deploy.recipes.building import BuildEngine
from dipgo_deploy.recipes.record import FileState, RunRecord, StageRecord, file_state, load_record, save_record
from dipgo_deploy.recipes.sections import Recipe
from dipgo_deploy.recipes.stages import KINDS, Job, Stage, stages_of

__all__ = ["RunReport", "StageReport", "Status", "run_recipe"]

Status = Literal["up to date", "skipped", "ran"]
"""Status of a stage."""

_LOCK = ".run.lock"


@dataclass(frozen=True)
class StageReport:
    """The status of one stage, the reason, and the seconds that it took."""

    stage: str
    status: Status
    reason: str
    seconds: float = 0.0


@dataclass(frozen=True)
class RunReport:
    """The status of every stage, and the folder with the results."""

    out: Path
    stages: tuple[StageReport, ...]


def run_recipe(
    recipe: Recipe, out: Path, *, until: str | None = None, force: Collection[str] = (), command: str = ""
) -> Work[RunReport]:
    """Run the stages of ``recipe`` that are not up to date.

    When a stage begins or is skipped, a Progress has the stage's name as ``stage``, and the reason as text. Within a
    stage, ``stage`` is the stage's name, a slash and the current work.

    Args:
        recipe: see ``load_recipe``.
        out: the folder for everything that is written.
        until: the kind of the last stage to run.
        force: kinds of stages that run even if they are up to date.
        command: the command line, for the record of the bench.

    Raises:
        UsageError: an unknown kind, or keys that do not fit each other.
        InputError: another run writes to ``out``, a file there was not made by a run, or a stage finds a damaged
            file.
        MissingError: a target that cannot be built here and is not optional.
        GateError: a verification failed.
    """
    for kind in (*force, *([] if until is None else [until])):
        if kind not in KINDS:
            raise UsageError(f"stage {kind!r} is unknown: choose {', '.join(KINDS)}")
    job = Job(recipe, out.absolute(), command)
    last = len(KINDS) if until is None else KINDS.index(until) + 1
    stages = [stage for stage in stages_of(job) if stage.kind in KINDS[:last]]
    _check(job, stages)
    check_target(out, folder=True)
    _check_own(stages, out.absolute())
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / _LOCK, timeout=0):
            reports = yield from _run_all(stages, out.absolute(), force)
    except Timeout:
        raise InputError(f"another run writes to {out}: wait for its end, or choose another folder") from None
    return RunReport(out, reports)


def _check(job: Job, stages: list[Stage]) -> None:
    """Before the first stage runs, make the checks of all later stages."""
    for name, section in job.recipe.schedules.items():
        model_calls.check_search("search" if name not in job.recipe.contenders else f"contenders.{name}", section)
    for stage in stages:
        if isinstance(stage, BuildEngine):
            stage.refusal()


def _check_own(stages: list[Stage], out: Path) -> None:
    """Raise InputError if a stage that never ran in ``out`` would replace a file or folder there."""
    recorded = load_record(out).stages
    for stage in stages:
        if stage.name not in recorded and (path := next((path for path in stage.results() if path.exists()), None)):
            raise InputError(f"{path} was not made by a run in {out}: choose another out folder, or move it away")


def _run_all(
    stages: list[Stage], out: Path, force: Collection[str]
) -> Generator[Progress, None, tuple[StageReport, ...]]:
    reports = []
    for stage in stages:
        reports.append((yield from _Step(stage, out, stage.kind in force).run()))
    return tuple(reports)


class _Step:
    """One stage of a run, with its record."""

    def __init__(self, stage: Stage, out: Path, forced: bool) -> None:
        self.stage, self.out, self.forced = stage, out, forced
        self.record: RunRecord = load_record(out)
        self.previous = self.record.stages.get(stage.name)

    def run(self) -> Generator[Progress, None, StageReport]:
        """Skip the stage, or run and record it."""
        name, started = self.stage.name, time.monotonic()
        if refusal := self.stage.refusal():
            return (yield from self._without_work("skipped", refusal))
        inputs = self._inputs()
        changed = self._changed(inputs)
        reason = self._reason(changed)
        if not reason:
            return (yield from self._without_work("up to date", ""))
        self.stage.prepare(changed)
        if not changed and self.previous is not None and not self.previous.done:
            point = self.stage.resume_point()
            reason = f"resumed at {point}" if point else "was interrupted, starts again"
        save_record(self.out, self.record.with_stage(name, StageRecord(inputs)))
        yield Progress(name, 0, 1, reason)
        written = yield from self._work()
        outputs = {self._label(path): file_state(path) for path in written}
        save_record(self.out, self.record.with_stage(name, StageRecord(inputs, outputs, done=True)))
        return StageReport(name, "ran", reason, time.monotonic() - started)

    def _without_work(self, status: Status, reason: str) -> Generator[Progress, None, StageReport]:
        yield Progress(self.stage.name, 1, 1, f"{status} ({reason})" if reason else status)
        return StageReport(self.stage.name, status, reason)

    def _work(self) -> Generator[Progress, None, list[Path]]:
        work = self.stage.run()
        while True:
            try:
                progress = next(work)
            except StopIteration as stop:
                written: list[Path] = stop.value
                return written
            yield replace(progress, stage=f"{self.stage.name} / {progress.stage}")

    def _reason(self, changed: Collection[str]) -> str:
        """Why the stage runs, "" if it is up to date."""
        if self.previous is None:
            return "starts"
        if changed:
            return f"inputs changed ({', '.join(changed)})"
        if not self.previous.done:
            return "was interrupted"
        if touched := self._touched(self.previous):
            return f"output changed or deleted ({', '.join(touched)})"
        return "forced" if self.forced else ""

    def _touched(self, previous: StageRecord) -> list[str]:
        """Outputs that were changed or deleted since the stage wrote them."""
        return [label for label, state in previous.outputs.items() if not self._is_unchanged(label, state)]

    def _is_unchanged(self, label: str, state: FileState) -> bool:
        path = self.out / label
        try:
            return path.is_file() and file_state(path, state).sha256 == state.sha256
        except InputError:  # a manifest that is no JSON any more
            return False

    def _changed(self, inputs: dict[str, str]) -> list[str]:
        """Labels of the inputs that differ from the record, including added and removed inputs."""
        if self.previous is None:
            return []
        before = self.previous.inputs
        return [label for label in dict.fromkeys([*inputs, *before]) if inputs.get(label) != before.get(label)]

    def _inputs(self) -> dict[str, str]:
        """Digests by label: of recipe keys, versions and files."""
        values = {**self.stage.keys(), **self.stage.versions()}
        files = {self._label(path): file_state(path, self._known(path)).sha256[:16] for path in self.stage.files()}
        return {label: _digest(value) for label, value in values.items()} | files

    def _label(self, path: Path) -> str:
        return path.relative_to(self.out).as_posix() if path.is_relative_to(self.out) else str(path)

    def _known(self, path: Path) -> FileState | None:
        """The state of a file that an earlier stage wrote."""
        label = self._label(path)
        return next((stage.outputs[label] for stage in self.record.stages.values() if label in stage.outputs), None)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

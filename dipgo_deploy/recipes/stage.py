"""A stage: its name, the recipe keys and files that it reads, the files that it writes, and its work."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dipgo_deploy import __version__
from dipgo_deploy.core.files import FORMAT_VERSION
from dipgo_deploy.core.progress import Work
from dipgo_deploy.recipes import model_calls
from dipgo_deploy.recipes.sections import ContenderSection, Recipe, SearchSection

if TYPE_CHECKING:
    from dipgo_deploy.models import LoadedModel

__all__ = ["Job", "Stage", "division_of", "keys_of"]


@dataclass(frozen=True)
class Job:
    """A recipe and the folder that its run writes to. The model is loaded when a stage first needs it."""

    recipe: Recipe
    out: Path
    command: str = ""

    @cached_property
    def model(self) -> LoadedModel:
        """The model of the recipe."""
        return model_calls.load_model(self.recipe.model)

    @property
    def benched(self) -> list[str]:
        """Names of the schedules that the bench compares."""
        return [name for name, section in self.recipe.schedules.items() if getattr(section, "bench", True)]


@dataclass(frozen=True)
class Stage(ABC):
    """One stage. ``schedule`` names the schedule of the stage, if the stage belongs to one schedule."""

    kind: ClassVar[str]
    job: Job
    schedule: str = ""
    label: str = ""

    @property
    def name(self) -> str:
        """The kind, and for anything but the main schedule the label."""
        return f"{self.kind} {self.label}" if self.label else self.kind

    @property
    def section(self) -> SearchSection:
        """The table of the schedule."""
        return self.job.recipe.schedules[self.schedule]

    @property
    def table(self) -> str:
        """The name of the schedule's table."""
        return f"contenders.{self.schedule}" if isinstance(self.section, ContenderSection) else "search"

    def path(self, suffix: str) -> Path:
        """The file named after the schedule with ``suffix``."""
        return self.job.out / f"{self.schedule}{suffix}"

    @property
    def blocks(self) -> Path:
        """The block graph of the schedule."""
        return self.job.out / f"{division_of(self.section)}.blocks.json"

    @property
    def bundle(self) -> Path:
        """The bundle of the schedule."""
        return self.path("")

    @abstractmethod
    def keys(self) -> Mapping[str, Any]:
        """The recipe keys that the stage reads, with their values."""

    def files(self) -> list[Path]:
        """The files that the stage reads."""
        return []

    def results(self) -> list[Path]:
        """The files and folders that the stage replaces."""
        return []

    def versions(self) -> Mapping[str, str]:
        """Versions of the software on which the outputs depend."""
        return {"package version": __version__, "format version": FORMAT_VERSION}

    def refusal(self) -> str:
        """Why the stage is skipped, "" if it runs. Raises MissingError if it can neither run nor be skipped."""
        return ""

    def prepare(self, changed: Collection[str]) -> None:  # noqa: B027 - most stages leave nothing that becomes invalid
        """Remove outputs of an earlier run that are invalid now that the inputs in ``changed`` differ."""

    def resume_point(self) -> str:
        """Where an interrupted stage resumes, "" if it starts again."""
        return ""

    @abstractmethod
    def run(self) -> Work[list[Path]]:
        """Do the work and return the files written."""


def keys_of(table: str, section: Any, names: Collection[str] | None = None) -> dict[str, Any]:
    """The values of a table by dotted key.

    Args:
        table: the name of the table.
        section: the table.
        names: which keys. None means all.
    """
    values = asdict(section)
    return {f"{table}.{name}": values[name] for name in (values if names is None else names)}


def division_of(section: SearchSection) -> str:
    """A name for the division of the model into blocks."""
    if not section.blocks:
        return section.granularity
    return f"own-{hashlib.sha256(json.dumps(section.blocks).encode()).hexdigest()[:8]}"

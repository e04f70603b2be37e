"""The stages that make a bundle and its engines: trace, search, export and build-engine."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import MissingError
from dipgo_deploy.core.files import load_block_graph, load_schedule, save_block_graph, save_schedule
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.recipes import bundle_calls, model_calls
from dipgo_deploy.recipes.record import exported_files
from dipgo_deploy.recipes.stage import Stage, keys_of

__all__ = ["BuildEngine", "Export", "Search", "Trace"]


class Trace(Stage):
    """Turn the model into a block graph. The master graph stays in the cache for export."""

    kind = "trace"

    def keys(self) -> Mapping[str, Any]:
        """The model and how it is divided."""
        recipe = self.job.recipe
        division = keys_of(self.table, self.section, ("granularity", "blocks"))
        return {
            **keys_of("model", recipe.model),
            "files of model.source": model_calls.model_files(recipe.model),
            **division,
        }

    def results(self) -> list[Path]:
        """The block graph."""
        return [self.blocks]

    def run(self) -> Work[list[Path]]:
        """Trace, and keep the block graph."""
        yield Progress("loading the model", 0, 2)
        model = self.job.model
        yield Progress("tracing", 1, 2)
        save_block_graph(self.blocks, model_calls.trace_blocks(model, self.section))
        return [self.blocks]


class Search(Stage):
    """Turn the block graph into a schedule."""

    kind = "search"

    _CUT = ("ratio", "calls", "order", "polish", "images")
    """Keys on which the training of a pruner does not depend."""

    @property
    def pruner(self) -> Path:
        """The pruner's file, for method dipgo."""
        return self.path(".pruner")

    @property
    def _start(self) -> Path | None:
        return model_calls.start_pruner(self.job.recipe, self.section)

    def keys(self) -> Mapping[str, Any]:
        """The keys of the sampler and of the schedule's table."""
        section = keys_of(self.table, self.section)
        section.pop(f"{self.table}.bench", None)
        return {**keys_of("sampler", self.job.recipe.sampler), **section}

    def files(self) -> list[Path]:
        """The block graph, a latency table and a pruner to start from."""
        latency = self.section.latency
        others = [None if latency is None else Path(latency), self._start]
        return [self.blocks, *(path for path in others if path is not None)]

    def results(self) -> list[Path]:
        """The schedule and the pruner."""
        return [self.path(".json"), self.pruner]

    def prepare(self, changed: Collection[str]) -> None:
        """Drop a pruner that was trained on other inputs."""
        if set(changed) - {f"{self.table}.{name}" for name in self._CUT}:
            self.pruner.unlink(missing_ok=True)

    def resume_point(self) -> str:
        """The iteration that the pruner has reached."""
        return model_calls.trained_iterations(self.pruner) if self.pruner.is_file() else ""

    def run(self) -> Work[list[Path]]:
        """Search, and keep the schedule and the pruner."""
        if self._start is not None and not self.pruner.exists():
            write_atomic(self.pruner, self._start.read_bytes())
        recipe, graph = self.job.recipe, load_block_graph(self.blocks)
        schedule = yield from model_calls.search(self.job.model, graph, recipe, self.section, self.pruner)
        save_schedule(self.path(".json"), schedule)
        return [self.path(".json"), *([self.pruner] if self.pruner.is_file() else [])]


class Export(Stage):
    """Turn the schedule into a bundle."""

    kind = "export"

    def keys(self) -> Mapping[str, Any]:
        """The model, whose other components are copied, and how to export."""
        recipe = self.job.recipe
        model = {**keys_of("model", recipe.model), "files of model.source": model_calls.model_files(recipe.model)}
        return {**model, **keys_of("export", recipe.export)}

    def files(self) -> list[Path]:
        """The schedule and its blocks."""
        return [self.path(".json"), self.blocks]

    def results(self) -> list[Path]:
        """The bundle."""
        return [self.bundle]

    def prepare(self, changed: Collection[str]) -> None:
        """Drop our own folder if its manifest is lost: export refuses to overwrite a folder that is not a bundle."""
        if self.bundle.is_dir() and not (self.bundle / BUNDLE_FILE).exists():
            shutil.rmtree(self.bundle)

    def run(self) -> Work[list[Path]]:
        """Export."""
        yield Progress("cutting graphs", 0, 1)
        bundle_calls.export(self.job.model, load_schedule(self.path(".json")), self.bundle, self.job.recipe.export)
        return exported_files(self.bundle)


@dataclass(frozen=True)
class BuildEngine(Stage):
    """Build the bundle's engines for one target."""

    kind: ClassVar[str] = "build-engine"
    target: str = ""

    @cached_property
    def _machine(self) -> str:
        return bundle_calls.check_target(self.target, self.job.recipe.targets[self.target])

    def refusal(self) -> str:
        """Why the target cannot be built here, if it is optional."""
        try:
            return "" if self._machine else "no target"
        except MissingError as error:
            if self.job.recipe.targets[self.target].optional:
                return str(error)
            raise MissingError(
                f"targets.{self.target}: {error}; or set targets.{self.target}.optional to true"
            ) from None

    def keys(self) -> Mapping[str, Any]:
        """The table of the target."""
        return keys_of(f"targets.{self.target}", self.job.recipe.targets[self.target])

    def versions(self) -> Mapping[str, str]:
        """As for every stage, plus the library and the architectures."""
        return {**super().versions(), "target": self._machine}

    def files(self) -> list[Path]:
        """The manifest, which names every file of the bundle with its digest."""
        return [self.bundle / BUNDLE_FILE]

    def resume_point(self) -> str:
        """The number of existing engines. The build keeps engines that are up to date."""
        count = len(list(self.bundle.glob("*/engines/*/*.engine")))
        return f"{count} engines" if count else ""

    def run(self) -> Work[list[Path]]:
        """Build."""
        return (yield from bundle_calls.build_engines(self.bundle, self.job.recipe, self.target))

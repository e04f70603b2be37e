"""The stages that run a bundle: verify, draw and bench."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipgo_deploy.core.bundle import BUNDLE_FILE
from dipgo_deploy.core.errors import GateError
from dipgo_deploy.core.files import load_block_graph, load_schedule
from dipgo_deploy.core.metrics import psnr_text
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.recipes import bundle_calls
from dipgo_deploy.recipes.stage import Stage, keys_of

__all__ = ["Bench", "Draw", "Verify"]


class BundleStage(Stage):
    """A stage that runs a bundle, on its engines if the recipe asks for engines and they were built."""

    @property
    def _on_engines(self) -> bool:
        return self.job.recipe.run.on_engines and self.schedule in self.job.benched

    def keys(self) -> Mapping[str, Any]:
        """Backend and device of bundles, and the guidance scale."""
        recipe = self.job.recipe
        return {**keys_of("run", recipe.run), **keys_of("sampler", recipe.sampler, ("guidance_scale",))}

    def _bundle_files(self, bundle: Path, on_engines: bool) -> list[Path]:
        records = sorted(bundle.glob("*/engines/*/*.json")) if on_engines else []
        return [bundle / BUNDLE_FILE, *records]


class Verify(BundleStage):
    """Compare the bundle with PyTorch, and the schedule with the full run."""

    kind = "verify"

    def keys(self) -> Mapping[str, Any]:
        """What to run, and the required accuracy."""
        return {**super().keys(), **keys_of("verify", self.job.recipe.verify)}

    def files(self) -> list[Path]:
        """The bundle."""
        return self._bundle_files(self.bundle, self._on_engines)

    def results(self) -> list[Path]:
        """The result of the verification."""
        return [self.path(".verify.json")]

    def run(self) -> Work[list[Path]]:
        """Verify. Raises GateError if the bundle fails, after its numbers are written."""
        yield Progress("comparing backends", 0, 1)
        report = bundle_calls.verify(self.bundle, self.job.recipe, self._on_engines)
        document = self.path(".verify.json")
        bundle_calls.write_verification(report, document)
        if not report.passed:
            raise GateError(f"{self.name}: {report.failure}")
        psnr = report.psnr_db
        yield Progress("comparing backends", 1, 1, f"PSNR to the full run {psnr_text(psnr['p50'])}")
        return [document]


class Draw(BundleStage):
    """Draw the schedule, and images."""

    kind = "draw"

    def keys(self) -> Mapping[str, Any]:
        """What to draw."""
        return {**super().keys(), **keys_of("pictures", self.job.recipe.pictures)}

    @property
    def _pruner(self) -> Path | None:
        return self.path(".pruner") if self.section.method == "dipgo" else None

    def files(self) -> list[Path]:
        """The schedule, its blocks, the bundle and the pruner."""
        pruner = [] if self._pruner is None else [self._pruner]
        return [self.path(".json"), self.blocks, self.bundle / BUNDLE_FILE, *pruner]

    def results(self) -> list[Path]:
        """The pictures."""
        return [self.path(suffix) for suffix in (".png", "-scores.png", "-grid.png")]

    def run(self) -> Work[list[Path]]:
        """Draw."""
        recipe, pictures = self.job.recipe, self.job.recipe.pictures
        assert pictures is not None
        schedule, graph = load_schedule(self.path(".json")), load_block_graph(self.blocks)
        written = []
        if pictures.schedules:
            yield Progress("schedule", 0, 2)
            bundle_calls.draw_schedule(schedule, graph, self.path(".png"))
            written.append(self.path(".png"))
            if self._pruner is not None:
                scores = self.path("-scores.png")
                bundle_calls.draw_scores(self._pruner, schedule, graph, scores)
                written.append(scores)
        if pictures.images:
            yield Progress("images", 1, 2)
            bundle_calls.draw_images(self.bundle, recipe, pictures, self.path("-grid.png"))
            written.append(self.path("-grid.png"))
        return written


class Bench(BundleStage):
    """Measure the schedules, the full model and plain samplers."""

    kind = "bench"

    def keys(self) -> Mapping[str, Any]:
        """The sizes."""
        recipe = self.job.recipe
        plot = {"pictures.bench": recipe.pictures is not None and recipe.pictures.bench}
        return {**super().keys(), **keys_of("bench", recipe.bench), **plot}

    @property
    def _bundles(self) -> list[Path]:
        return [self.job.out / name for name in self.job.benched]

    def files(self) -> list[Path]:
        """The bundles."""
        on_engines = self.job.recipe.run.on_engines
        return [file for bundle in self._bundles for file in self._bundle_files(bundle, on_engines)]

    def results(self) -> list[Path]:
        """The document and its picture."""
        return [self.job.out / "bench.json", self.job.out / "bench.png"]

    def run(self) -> Work[list[Path]]:
        """Measure, and keep the document and its picture."""
        report = yield from bundle_calls.measure(self._bundles, self.job.recipe, self.job.command)
        document, pictures = self.job.out / "bench.json", self.job.recipe.pictures
        picture = self.job.out / "bench.png" if pictures is not None and pictures.bench else None
        bundle_calls.write_bench(report, document, picture)
        return [document, *([] if picture is None else [picture])]

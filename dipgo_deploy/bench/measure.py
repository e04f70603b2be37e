"""One bench, from bundles to a report.

1. The converged run draws the held-out images and the first ``converged_images``.
2. A pilot times full model and schedules. The pilot determines how many full steps take as long as each schedule.
3. Each plain sampler is tuned at every schedule's number of calls and at its latency. The spacing and noise levels
   closest to the full run on the held-out images become a contender, and so do those closest to the converged run.
   DDIM also runs on each schedule's own timesteps.
4. All contenders are timed, interleaved. Then text encoder and VAE are timed once.
5. All contenders draw the same images from the same noise, which are compared with the full and the converged run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from dipgo_deploy.bench.contenders import Contender, FullNetwork
from dipgo_deploy.bench.entries import Entry, bench_entries, weight_bytes
from dipgo_deploy.bench.evaluation import EXTRACTOR, Evaluation, digits_evaluator
from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.pipeline_overhead import time_pipeline_overhead
from dipgo_deploy.bench.plain import comparable_steps, on_time_grids, plain_samplers
from dipgo_deploy.bench.report import BenchReport, LeftOut, Row
from dipgo_deploy.bench.stage_sizes import DRAWING, PILOT, PILOT_ROUNDS, REFERENCES, TIMING, StageSizes
from dipgo_deploy.bench.timing import Stage, draw_images, labels_of, time_contenders
from dipgo_deploy.bundle import Bundle
from dipgo_deploy.core.progress import Work, with_overall
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.runtime.environment import environment

__all__ = ["bench"]

_HELD_OUT = 1_000_000
"""Distance of the held-out seeds from the seeds of the evaluation, beyond any number of images."""


def bench(
    bundles: Bundle | Sequence[Bundle],
    options: BenchOptions | None = None,
    schedules: Sequence[tuple[str, Schedule]] = (),
) -> Work[BenchReport]:
    """Measure schedules next to the full model and plain samplers.

    Args:
        bundles: one or more of the same model and contract. Each is a row under its folder's name.
        options: sizes, seeds and run settings.
        schedules: more rows by name, compiled in memory from the first bundle that has the schedule's blocks.

    Yields:
        Progress of each stage, with the share of the whole bench. The unit is network calls per image, or rounds.

    Returns:
        The report.

    Raises:
        UsageError: a batch, guidance scale or device that a bundle does not support, or a name that occurs twice.
        InputError: a damaged bundle, or a bundle of another model or contract than the first.
        MissingError: a missing device.
    """
    entries = bench_entries([bundles] if isinstance(bundles, Bundle) else bundles, schedules)
    measured = _Bench(entries, options or BenchOptions())
    report = yield from with_overall(measured.run(), measured.stages.sizes)
    return report


class _Bench:
    """The state of one bench: contenders and reference images, each made once and kept."""

    def __init__(self, entries: Sequence[Entry], options: BenchOptions) -> None:
        self.entries, self.options, self.bundle = entries, options, entries[0].bundle
        self.contract = self.bundle.manifest.contract
        self.network = FullNetwork(self.bundle, options)
        self.schedules = [self.network.schedule(entry) for entry in entries]
        self.full = self.network.full()
        self.digits = digits_evaluator(self.contract.latent_shape, self.bundle.model.num_classes)
        self.left_out: list[LeftOut] = []
        self.stages = StageSizes(options, self.full.program)

    def run(self) -> Work[BenchReport]:
        """Run the numbered stages of the module's docstring."""
        options = self.options
        seeds = range(options.seed, options.seed + options.images)
        held_out = range(options.seed + _HELD_OUT, options.seed + _HELD_OUT + options.tuning_images)
        converged, targets = yield from self._references(seeds[: options.converged_images], held_out)
        contenders = [self.full, *self.schedules, *(yield from self._samplers(held_out, targets))]
        self.stages.measure(contender.program for contender in contenders[1:])
        watch = yield from time_contenders(
            TIMING, self.bundle, contenders, options.repeats, options.seed, options.run.device
        )
        overhead = yield from time_pipeline_overhead(self.bundle, options)
        stage = Stage(DRAWING, len(seeds) * sum(contender.program.nfe for contender in contenders))
        full_images = yield from draw_images(self.bundle, self.full.session, seeds, stage, self.full.name)
        evaluation = Evaluation(
            full_images, converged, labels_of(self.bundle, seeds), self.digits, watch, self.full.program.macs,
            overhead.total_ms,
        )  # fmt: skip
        rows = yield from self._rows(evaluation, contenders, seeds, stage)
        return BenchReport(
            environment=self._environment,
            contract=self.contract,
            rows=tuple(rows),
            memory=self._memory(rows),
            aa_ratio=watch.aa_ratio,
            components_ms=overhead.components_ms,
            left_out=tuple(map(str, (*self.left_out, *overhead.left_out))),
        )

    def _references(
        self, seeds: Sequence[int], held_out: Sequence[int]
    ) -> Work[tuple[np.ndarray | None, list[np.ndarray]]]:
        """Converged images of ``seeds``, and the tuning targets: held-out images of the full and the converged run."""
        converged = self.network.converged_session(self.options.converged_calls) if seeds else None
        calls = len(held_out) * self.full.program.nfe
        self._start_stages(0 if converged is None else converged.program.nfe)
        if converged is not None:
            calls += (len(seeds) + len(held_out)) * converged.program.nfe
        stage = Stage(REFERENCES, calls)
        full = yield from draw_images(self.bundle, self.full.session, held_out, stage, self.full.name)
        if converged is None:
            return None, [full]
        text = f"converged run of {converged.program.nfe} calls"
        images = yield from draw_images(self.bundle, converged, [*seeds, *held_out], stage, text)
        return images[: len(seeds)], [full, images[len(seeds) :]]

    def _start_stages(self, converged_calls: int) -> None:
        """Estimate the durations of all stages. Before the pilot, MACs stand for time."""
        schedules = [contender.program for contender in self.schedules]
        full = self.full.program
        calls, speedups = [program.nfe for program in schedules], [full.macs.full / p.macs.full for p in schedules]
        self.stages.start(schedules, comparable_steps(calls, full.nfe, speedups), converged_calls)

    def _samplers(self, held_out: Sequence[int], targets: Sequence[np.ndarray]) -> Work[list[Contender]]:
        """DDIM on the schedules' time grids, and plain samplers at the schedules' calls and latencies."""
        base, options = [self.full, *self.schedules], self.options
        pilot = yield from time_contenders(PILOT, self.bundle, base, PILOT_ROUNDS, options.seed, options.run.device)
        on_grids = list(on_time_grids(self.network, self.entries))
        self.left_out += [grid for grid in on_grids if isinstance(grid, LeftOut)]
        calls = [contender.program.nfe for contender in self.schedules]
        speedups = [pilot.speedup(contender.name) for contender in self.schedules]
        steps = comparable_steps(calls, self.full.program.nfe, speedups)
        self.stages.tune(steps)
        samplers = yield from plain_samplers(self.network, steps, held_out, targets)
        return [*(grid for grid in on_grids if isinstance(grid, Contender)), *samplers]

    def _rows(
        self, evaluation: Evaluation, contenders: Sequence[Contender], seeds: Sequence[int], stage: Stage
    ) -> Work[list[Row]]:
        bundles = {entry.name: entry.bundle for entry in self.entries}
        rows = []
        for contender in contenders:
            images = evaluation.full
            if contender is not self.full:
                images = yield from draw_images(self.bundle, contender.session, seeds, stage, contender.name)
            weights = weight_bytes(bundles.get(contender.name, self.bundle), contender.program)
            rows.append(evaluation.row(contender, images, weights))
        return rows

    def _memory(self, rows: Sequence[Row]) -> dict[str, int]:
        """The memory of the first schedule."""
        return {
            "model_weight_bytes": self.bundle.manifest.model_weight_bytes,
            "bundle_weight_bytes": rows[1].weight_bytes,
            "slot_bytes": rows[1].slot_bytes,
        }

    @cached_property
    def _environment(self) -> dict[str, object]:
        settings = replace(self.options, guidance_scale=self.network.guidance_scale).document
        record = {**environment(), "command": self.options.command, "bench": settings}
        if self.digits is not None:
            record |= {"extractor": EXTRACTOR, "frechet_floor": self.digits.floor(self.options.images)}
        return record

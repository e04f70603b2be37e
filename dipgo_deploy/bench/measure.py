"""One bench, from bundles to a report, as a generator of its progress.

1. The converged run draws the held-out images and the first ``converged_images``.
2. A pilot times full model and schedules: how many full steps take each schedule's time.
3. Each plain sampler, at every schedule's number of calls and at its latency, takes the spacing and noise levels that
   come nearest to the full run on the held-out images, and those that come nearest to the converged run: one contender
   or two. DDIM also runs on each schedule's own timesteps.
4. All contenders are timed, interleaved; then, once, what a pipeline runs around the denoiser.
5. All draw the same images from the same noise, which are judged beside the full and the converged run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property

import numpy as np

from dipgo_deploy.bench.contenders import Contender, FullNetwork
from dipgo_deploy.bench.entries import Entry, bench_entries, weight_bytes
from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.plain import LeftOut, on_grids, plain_samplers, steps_beside
from dipgo_deploy.bench.quality import EXTRACTOR, digits_judge
from dipgo_deploy.bench.report import BenchReport, Row
from dipgo_deploy.bench.rows import Judging
from dipgo_deploy.bench.stages import Progress, drawn, labels_of, timed
from dipgo_deploy.bench.surroundings import time_surroundings
from dipgo_deploy.bundle import Bundle
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.runtime.environment import environment

__all__ = ["bench"]

_PILOT_ROUNDS = 3
_HELD_OUT = 1_000_000
"""Distance of the held-out seeds from those that are judged."""


def bench(
    bundles: Bundle | Sequence[Bundle],
    options: BenchOptions | None = None,
    schedules: Sequence[tuple[str, Schedule]] = (),
) -> Iterator[Progress | BenchReport]:
    """Measure schedules beside the full model and plain samplers; yields Progress and lastly the BenchReport.

    Args:
        bundles: one or more of the same model and contract; each is a row under its folder's name.
        options: sizes, seeds and machine settings.
        schedules: more rows by name, compiled in memory from the first bundle that has the schedule's blocks.

    Raises:
        UsageError: a batch, guidance scale or device that a bundle does not take, or a name that occurs twice.
        InputError: a damaged bundle, or one of another model or contract than the first.
        MissingError: a missing device.
    """
    given = [bundles] if isinstance(bundles, Bundle) else bundles
    yield from _Bench(bench_entries(given, schedules), options or BenchOptions()).run()


class _Bench:
    """The state of one bench: contenders and reference images, each made once and kept."""

    def __init__(self, entries: Sequence[Entry], options: BenchOptions) -> None:
        self.entries, self.options, self.bundle = entries, options, entries[0].bundle
        self.contract = self.bundle.manifest.contract
        self.network = FullNetwork(self.bundle, options)
        self.schedules = [self.network.schedule(entry) for entry in entries]
        self.full = self.network.full()
        self.judge = digits_judge(self.contract.latent_shape, self.bundle.model.num_classes)
        self.left_out: list[LeftOut] = []

    def run(self) -> Iterator[Progress | BenchReport]:
        """The stages of the module's docstring."""
        options = self.options
        seeds = range(options.seed, options.seed + options.images)
        held_out = range(options.seed + _HELD_OUT, options.seed + _HELD_OUT + options.tuning_images)
        converged, targets = yield from self._references(seeds[: options.converged_images], held_out)
        contenders = [self.full, *self.schedules, *(yield from self._samplers(held_out, targets))]
        watch = yield from timed("timing", self.bundle, contenders, options.repeats, options.seed, options.device)
        around = yield from time_surroundings(self.bundle, options)
        full_images = yield from drawn(f"drawing with {self.full.name}", self.bundle, self.full.session, seeds)
        labels = labels_of(self.bundle, seeds)
        judging = Judging(full_images, converged, labels, self.judge, watch, self.full.program.macs, around.total_ms)
        rows = yield from self._rows(judging, contenders, seeds)
        yield BenchReport(
            environment=self._environment,
            contract=self.contract,
            rows=tuple(rows),
            memory=self._memory(rows),
            aa_ratio=watch.aa_ratio,
            components_ms=around.components_ms,
            left_out=tuple(map(str, (*self.left_out, *around.left_out))),
        )

    def _references(
        self, judged: Sequence[int], held_out: Sequence[int]
    ) -> Generator[Progress, None, tuple[np.ndarray | None, list[np.ndarray]]]:
        """Converged images of the judged seeds, and what samplers are tuned on: held-out images of either run."""
        full = yield from drawn("drawing held-out images", self.bundle, self.full.session, held_out)
        if not judged:
            return None, [full]
        session = self.network.converged_session(self.options.converged_calls)
        stage = f"converged run of {session.program.nfe} calls"
        images = yield from drawn(stage, self.bundle, session, [*judged, *held_out])
        return images[: len(judged)], [full, images[len(judged) :]]

    def _samplers(
        self, held_out: Sequence[int], targets: Sequence[np.ndarray]
    ) -> Generator[Progress, None, list[Contender]]:
        """DDIM on the schedules' grids, and plain samplers at their calls and at their latencies."""
        base = [self.full, *self.schedules]
        pilot = yield from timed(
            "pilot timing", self.bundle, base, _PILOT_ROUNDS, self.options.seed, self.options.device
        )
        grids = list(on_grids(self.network, self.entries))
        self.left_out += [grid for grid in grids if isinstance(grid, LeftOut)]
        calls = [contender.program.nfe for contender in self.schedules]
        speedups = [pilot.speedup(contender.name) for contender in self.schedules]
        steps = steps_beside(calls, self.full.program.nfe, speedups)
        samplers = yield from plain_samplers(self.network, steps, held_out, targets)
        return [*(grid for grid in grids if isinstance(grid, Contender)), *samplers]

    def _rows(
        self, judging: Judging, contenders: Sequence[Contender], seeds: Sequence[int]
    ) -> Generator[Progress, None, list[Row]]:
        homes, rows = {entry.name: entry.bundle for entry in self.entries}, []
        for contender in contenders:
            images = judging.full
            if contender is not self.full:
                stage = f"drawing with {contender.name}"
                images = yield from drawn(stage, self.bundle, contender.session, seeds)
            weights = weight_bytes(homes.get(contender.name, self.bundle), contender.program)
            rows.append(judging.row(contender, images, weights))
        return rows

    def _memory(self, rows: Sequence[Row]) -> dict[str, int]:
        """That of the first schedule."""
        return {
            "model_weight_bytes": self.bundle.manifest.model_weight_bytes,
            "bundle_weight_bytes": rows[1].weight_bytes,
            "slot_bytes": rows[1].slot_bytes,
        }

    @cached_property
    def _environment(self) -> dict[str, object]:
        settings = asdict(replace(self.options, guidance_scale=self.network.guidance_scale))
        found = {**environment(), "command": settings.pop("command"), "bench": settings}
        if self.judge is not None:
            found |= {"extractor": EXTRACTOR, "frechet_floor": self.judge.floor(self.options.images)}
        return found

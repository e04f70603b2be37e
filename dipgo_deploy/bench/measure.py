"""One bench, from a bundle to a report, as a generator of its progress.

1. The converged run draws the held-out images and the first ``converged_images``.
2. A pilot times full model and schedule: how many full steps take the schedule's time.
3. Each plain sampler, at the schedule's number of calls and at its latency, takes the spacing and noise levels that
   come nearest to the converged run on the held-out images.
4. All contenders are timed, interleaved.
5. All draw the same images from the same noise, which are judged beside the full and the converged run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

import numpy as np

from dipgo_deploy.bench.contenders import PLAIN_SAMPLERS, Contender, FullNetwork, Variant
from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.quality import EXTRACTOR, digits_judge, percentiles, ssim
from dipgo_deploy.bench.report import BenchReport, Row
from dipgo_deploy.bench.timing import Stopwatch, time_rounds
from dipgo_deploy.core.program import memory_bytes
from dipgo_deploy.graphs.weights import read_layout
from dipgo_deploy.runtime import LoadedBundle
from dipgo_deploy.runtime.environment import environment
from dipgo_deploy.runtime.fidelity import psnr_db
from dipgo_deploy.runtime.generate import draw, noise_for
from dipgo_deploy.runtime.interpreter import Session

__all__ = ["Progress", "bench", "weight_bytes"]

_PILOT_ROUNDS = 3
_HELD_OUT = 1_000_000
"""Distance of the held-out seeds from those that are judged."""


@dataclass(frozen=True)
class Progress:
    """``done`` of ``total`` parts of a stage."""

    stage: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.stage}: {self.done} of {self.total}"


def bench(bundle: LoadedBundle, options: BenchOptions | None = None) -> Iterator[Progress | BenchReport]:
    """Measure ``bundle`` beside the full model and plain samplers; yields Progress and lastly the BenchReport.

    Raises UsageError for a batch, guidance scale or device that the bundle does not take, InputError for a damaged one,
    MissingError for a missing device.
    """
    yield from _Bench(bundle, options or BenchOptions()).run()


class _Bench:
    """The state of one bench: sessions and reference images, each made once and kept."""

    def __init__(self, bundle: LoadedBundle, options: BenchOptions) -> None:
        self.bundle, self.options, self.contract = bundle, options, bundle.manifest.contract
        self.network = FullNetwork(bundle, options)
        self.schedule = Contender("schedule", "schedule", self.network.schedule_session())
        self.full = Contender("full", "full", self.network.full_session())
        self.judge = digits_judge(self.contract.latent_shape, bundle.model.num_classes)

    def run(self) -> Iterator[Progress | BenchReport]:
        """The stages of the module's docstring."""
        options = self.options
        seeds = range(options.seed, options.seed + options.images)
        held_out = range(options.seed + _HELD_OUT, options.seed + _HELD_OUT + options.tuning_images)
        converged, target = yield from self._references(seeds[: options.converged_images], held_out)
        samplers = yield from self._samplers(held_out, target)
        contenders = [self.full, self.schedule, *samplers]
        watch = yield from self._time(contenders, options.repeats, "timing")
        rows: list[Row] = []
        for contender in contenders:
            images = yield from self._drawn(f"drawing with {contender.name}", contender.session, seeds)
            if contender is self.full:
                full_images = images
            rows.append(self._row(contender, watch, seeds, images, (full_images, converged)))
        yield BenchReport(self._environment, self.contract, tuple(rows), self._memory, watch.aa_ratio)

    def _references(
        self, judged: Sequence[int], held_out: Sequence[int]
    ) -> Generator[Progress, None, tuple[np.ndarray | None, np.ndarray]]:
        """Converged images of the judged seeds, and what samplers are tuned on: without a converged run, the full."""
        if not judged:
            return None, (yield from self._drawn("drawing held-out images", self.full.session, held_out))
        session = self.network.converged_session(self.options.converged_calls)
        stage = f"converged run of {session.program.nfe} calls"
        images = yield from self._drawn(stage, session, [*judged, *held_out])
        return images[: len(judged)], images[len(judged) :]

    def _samplers(self, held_out: Sequence[int], target: np.ndarray) -> Generator[Progress, None, list[Contender]]:
        """Plain samplers at the schedule's calls and, where that is another number of steps, at its latency."""
        pilot = yield from self._time([self.full, self.schedule], _PILOT_ROUNDS, "pilot timing")
        calls = self.full.program.nfe
        same_time = max(1, min(round(calls / pilot.speedup("schedule")), 2 * calls))
        found = []
        for steps in dict.fromkeys((self.schedule.program.nfe, same_time)):
            for name, title in PLAIN_SAMPLERS.items():
                best = yield from self._tuned(f"tuning {title}-{steps}", name, steps, held_out, target)
                if best is not None:
                    session = self.network.session(best.spec, best.reading)
                    found.append(Contender(f"{title}-{steps} {best.label}", "sampler", session))
        return found

    def _tuned(
        self, stage: str, name: str, steps: int, seeds: Sequence[int], target: np.ndarray
    ) -> Generator[Progress, None, Variant | None]:
        """The variant with the best median PSNR to ``target``; None where the sampler does not suit the model."""
        variants, scores = list(self.network.variants(name, steps)), []
        for done, variant in enumerate(variants, 1):
            session = self.network.session(variant.spec, variant.reading)
            images = np.concatenate(list(draw(session, self.bundle, seeds, self._labels(seeds))))
            scores.append(float(np.median(psnr_db(np.nan_to_num(images, nan=1e6), target))))
            yield Progress(stage, done, len(variants))
        return variants[int(np.argmax(scores))] if variants else None

    def _time(self, contenders: Sequence[Contender], rounds: int, stage: str) -> Generator[Progress, None, Stopwatch]:
        noise = noise_for(range(self.options.batch), self.contract.latent_shape)
        labels = self._labels(range(self.options.batch))
        conditioning = self.bundle.model.conditioning(labels, self.contract.guidance)
        acts = {c.name: partial(c.session.run, noise, conditioning, seed=0) for c in contenders}
        watch = Stopwatch(self.full.name)
        for done, measured in enumerate(time_rounds(acts, watch.base, rounds, self.options.seed), 1):
            watch.add(measured)
            yield Progress(stage, done, rounds)
        return watch

    def _drawn(self, stage: str, session: Session, seeds: Sequence[int]) -> Generator[Progress, None, np.ndarray]:
        parts: list[np.ndarray] = []
        for part in draw(session, self.bundle, seeds, self._labels(seeds)):
            parts.append(part)
            yield Progress(stage, sum(map(len, parts)), len(seeds))
        return np.concatenate(parts)

    def _labels(self, seeds: Sequence[int]) -> list[int]:
        """Classes in turn, so that an image of a seed is the same wherever it is drawn."""
        return [seed % (self.bundle.model.num_classes or 1) for seed in seeds]

    def _row(
        self,
        contender: Contender,
        watch: Stopwatch,
        seeds: Sequence[int],
        images: np.ndarray,
        references: tuple[np.ndarray, np.ndarray | None],
    ) -> Row:
        program, speedup, (full, converged) = contender.program, watch.speedup(contender.name), references
        near = None if converged is None else (images[: len(converged)], converged)
        return Row(
            name=contender.name,
            kind=contender.kind,
            nfe=program.nfe,
            macs=program.macs,
            latency_ms=watch.latency_ms(contender.name),
            speedup=speedup,
            efficiency=speedup * program.macs.full / self.full.program.macs.full,
            psnr_full_db=percentiles(psnr_db(images, full), 10, 50),
            psnr_converged_db=near and percentiles(psnr_db(*near), 10, 50),
            ssim=percentiles(ssim(images, full), 10, 50),
            ssim_converged=near and percentiles(ssim(*near), 10, 50),
            frechet=None if self.judge is None else self.judge.frechet(images),
            accuracy=None if self.judge is None else self.judge.accuracy(images, self._labels(seeds)),
        )

    @property
    def _memory(self) -> dict[str, int]:
        return {
            "model_weight_bytes": self.bundle.manifest.model_weight_bytes,
            "bundle_weight_bytes": weight_bytes(self.bundle),
            "slot_bytes": memory_bytes(self.schedule.program, self.options.batch)["slots"],
        }

    @cached_property
    def _environment(self) -> dict[str, object]:
        settings = asdict(replace(self.options, guidance_scale=self.network.guidance_scale))
        found = {**environment(), "command": settings.pop("command"), "bench": settings}
        if self.judge is not None:
            found |= {"extractor": EXTRACTOR, "frechet_floor": self.judge.floor(self.options.images)}
        return found


def weight_bytes(bundle: LoadedBundle) -> int:
    """Bytes of weights in a bundle: all tensors of its weights file, and the constants inside each of its graphs."""
    stored = read_layout(bundle.weights)
    total = sum(length for _, length in stored.values())
    for graph in bundle.program.graphs:
        names = {name for index in graph.pieces for name in bundle.blocks.pieces[index].weights}
        total += sum(bundle.blocks.weights[name] for name in names if name.removeprefix("model.") not in stored)
    return total

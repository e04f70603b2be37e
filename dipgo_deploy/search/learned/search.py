"""The gradient search for a learned sampler as a whole.

1. The start is the closed-form fit, or the best plain sampler where that is better on held-out images.
2. The teacher draws the images to learn from, and images that are held out. They are kept in the user's cache.
3. Coefficients and times move by the gradient of the final images. The best held-out average is the result.

The training's file holds the start, so a search that is run again continues without another fit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from dipgo_deploy.core.disk import check_target
from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.core.learned_sampler import LearnedSampler
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.fit.search import fit_sampler, images_of_search, knobs_of, learned_spec, whole_calls
from dipgo_deploy.search.fit.teacher import record_images, teacher_spec
from dipgo_deploy.search.learned.chain import LearnedChain
from dipgo_deploy.search.learned.losses import Loss, log_mse, perceptual_loss
from dipgo_deploy.search.learned.options import LearnedOptions
from dipgo_deploy.search.learned.plain_start import sampler_of_plain, with_inputs
from dipgo_deploy.search.learned.training import Pairs, Training
from dipgo_deploy.search.learned.training_file import Saved, load_saved, save_training, search_digest
from dipgo_deploy.search.learned.workers import Workers
from dipgo_deploy.search.options import NOTE
from dipgo_deploy.search.problem import Problem

__all__ = ["learned"]

_POOL, _HELD_OUT = 1_000, 5_000
"""Offsets of the seeds of the images to learn from, and of those held out. The fit has the first."""

_FEWEST_HELD_OUT = 32
"""Held-out images, unless the search asks for more. Fewer choose by luck."""

_MEASURED = 16
"""Images on which the regressors of the start are measured."""

_SAVE_EVERY = 10

_LARGE = 2**28
"""Bytes of weights from which every call is recomputed by default."""


def learned(problem: Problem) -> Work[Candidate]:
    """Learn a sampler by gradient.

    Args:
        problem: model, blocks, contract and options, with LearnedOptions for settings.

    Returns:
        A generator of Progress whose result is the candidate, with a sampler of its own.

    Raises:
        UsageError: the teacher draws noise, or the model's noise schedule has no such number of calls.
        InputError: the training's file belongs to another search, or the network of the loss fails.
    """
    return (yield from LearnedSearch(problem).run())


@dataclass(frozen=True)
class _Start:
    """Where the descent starts, and what is recorded of the fit."""

    sampler: LearnedSampler
    record: dict[str, str]


class LearnedSearch:
    """The search for one problem.

    Args:
        problem: model, blocks, contract and options, with LearnedOptions for settings.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.settings = problem, problem.options.settings_as(LearnedOptions)
        self.images = images_of_search(problem, self.settings.start.trajectories)
        self.search = search_digest(self.images, self.settings)
        self.device = self.images.network().device
        self.workers = Workers(cpu=self.device.type == "cpu")
        self.file = self.settings.training
        if self.file is not None:
            check_target(self.file)

    def run(self) -> Work[Candidate]:
        """Find the start, learn, and record."""
        began, saved = time.monotonic(), self._saved()
        if saved is not None:
            text = f"continuing {self.file} after {saved.done} of {self.settings.iterations} steps"
            yield Progress(NOTE, 0, 1, text)
        start = _Start(saved.start, saved.record) if saved else (yield from self._start())
        training = yield from self._training(start)
        before = 0.0
        if saved is not None:
            before = saved.seconds
            try:
                training.restore(saved.tensors, saved.done)
            except (KeyError, RuntimeError) as error:
                raise InputError(f"{self.file} is damaged ({first_line(error)}): remove it") from None
        sampler = yield from self._learn(training, start, before, began)
        seconds = before + time.monotonic() - began
        knobs = {
            **start.record,
            "start_db": start.record["score_db"],
            "trajectories": str(self.settings.trajectories),
            "iterations": str(training.done),
            "loss": self.settings.loss,
            "score_db": f"{training.psnr():.3f}",
            "seconds": f"{seconds:.1f}",
        }
        record = {**sampler.fitted, "method": "learned", "iterations": str(training.done), "loss": self.settings.loss}
        spec = learned_spec(replace(sampler, fitted=record), self.images)
        return whole_calls(self.problem.graph, self.problem.contract, spec, knobs)

    def _saved(self) -> Saved | None:
        return load_saved(self.file, self.search) if self.file is not None and self.file.exists() else None

    def _start(self) -> Work[_Start]:
        """The better of fit and plain sampler on the fit's held-out images."""
        settings = self.settings.start
        fitted = yield from fit_sampler(self.problem, settings)
        record, sampler = knobs_of(self.problem, settings, fitted), fitted.sampler
        if fitted.plain is not None and fitted.is_below_plain:
            reading = read_sampler(fitted.plain.spec)
            assert isinstance(reading, LinearSampler)
            plain = sampler_of_plain(reading, fitted.plain.spec.timesteps, settings.history)
            if plain is not None:
                yield Progress(NOTE, 0, 1, f"the search starts from {fitted.plain.name}, which is better than the fit")
                sampler, record = plain, {**record, "score_db": f"{fitted.plain.score:.3f}"}
        return _Start(with_inputs(sampler, settings.history), record)

    def _training(self, start: _Start) -> Work[Training]:
        settings, problem = self.settings, self.problem
        spec = yield from teacher_spec(images_of_search(problem, settings.start.trajectories), settings.teacher)
        pairs = []
        held_out = max(_FEWEST_HELD_OUT, problem.options.image_count)
        for count, offset in ((settings.trajectories, _POOL), (held_out, _HELD_OUT)):
            images = images_of_search(problem, count, offset)
            targets = yield from record_images(images, spec)
            pairs.append(Pairs(images, targets.to(self.device)))
        measured = images_of_search(problem, min(_MEASURED, settings.trajectories), _POOL)
        chain = LearnedChain(start.sampler, measured.network(), measured.noise, recompute=self._recomputes())
        loss: Loss = log_mse
        if settings.features is not None:
            loss = perceptual_loss(settings.features, self.device)
            text = f"learning from features of {settings.features}: judge the images by another network"
            yield Progress(NOTE, 0, 1, text)
        latest = min(0.0, start.sampler.timesteps[-1])
        earliest = max(spec.timesteps[0], start.sampler.timesteps[0])
        return Training(
            chain, pairs[0], pairs[1], loss, settings, problem.options.seed, self.workers, (earliest, latest)
        )

    def _recomputes(self) -> bool:
        if self.settings.recompute == "auto":
            return self.problem.model.weight_bytes >= _LARGE
        return self.settings.recompute == "call"

    def _learn(self, training: Training, start: _Start, before: float, began: float) -> Work[LearnedSampler]:
        work = training.run()
        while True:
            try:
                progress = next(work)
            except StopIteration as stop:
                sampler: LearnedSampler = stop.value
                return sampler
            is_due = training.done % _SAVE_EVERY == 0 or training.done == self.settings.iterations
            if self.file is not None and is_due and self.workers.is_first:
                seconds = before + time.monotonic() - began
                saved = Saved(start.sampler, start.record, training.done, seconds, training.state())
                save_training(self.file, self.search, saved)
            yield progress

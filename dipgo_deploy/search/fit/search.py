"""The closed-form fit as a whole.

1. The teacher's trajectories are recorded, or read from the cache. Those of some images are held out.
2. Coefficients are fitted on every candidate time grid. The grid with the best held-out images is kept.
3. The times are moved one after another, with the coefficients fitted again at each try.
4. The best plain sampler of as many calls is the floor: where it is better on the held-out images, it is the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.learned_sampler import LearnedSampler
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.models.full_run import full_run_of
from dipgo_deploy.models.learned_scheduler import LearnedScheduler
from dipgo_deploy.models.schedulers import own_config, record_scheduler
from dipgo_deploy.search.candidate import Candidate
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.fit.floor import Plain, best_plain
from dipgo_deploy.search.fit.grids import time_grids
from dipgo_deploy.search.fit.moves import improve_times
from dipgo_deploy.search.fit.options import FitOptions
from dipgo_deploy.search.fit.student import Student, Times, Trial
from dipgo_deploy.search.fit.teacher import Images, Teacher, record_teacher, teacher_spec
from dipgo_deploy.search.options import NOTE
from dipgo_deploy.search.problem import Problem

__all__ = ["Fitted", "best_fit", "fit", "fit_sampler", "images_of_search", "knobs_of", "learned_spec", "whole_calls"]

_FIRST_SEED = DipgoOptions().first_seed
"""First seed of the teacher's images. A bench draws other noise."""

_SEEDS_OF_A_SEARCH = 10_000
"""Distance between the images of searches whose seeds differ by 1."""


@dataclass(frozen=True)
class Fitted:
    """A fit: the teacher, the sampler, its mean PSNR on the held-out images in dB, and the best plain sampler."""

    teacher: Teacher
    sampler: LearnedSampler
    score: float
    plain: Plain | None

    @property
    def is_below_plain(self) -> bool:
        """Whether the plain sampler is better on the held-out images."""
        return self.plain is not None and self.plain.score >= self.score


def fit(problem: Problem) -> Work[Candidate]:
    """Fit a learned sampler in closed form.

    Args:
        problem: model, blocks, contract and options, with FitOptions for settings.

    Returns:
        A generator of Progress whose result is the candidate, with a sampler of its own.

    Raises:
        UsageError: the teacher draws noise, or the model's noise schedule has no such number of calls.
    """
    settings = problem.options.settings_as(FitOptions)
    fitted = yield from fit_sampler(problem, settings)
    spec, knobs = learned_spec(fitted.sampler, fitted.teacher.images_drawn), knobs_of(problem, settings, fitted)
    if fitted.plain is not None and fitted.is_below_plain:
        plain = fitted.plain
        yield Progress(
            NOTE, 1, 1,
            f"{plain.name} is better than the fit on held-out images ({plain.score:.2f} against {fitted.score:.2f} "
            "dB), so the schedule takes that sampler",
        )  # fmt: skip
        spec, knobs = plain.spec, {**knobs, "sampler": plain.name, "score_db": f"{plain.score:.3f}"}
    return whole_calls(problem.graph, problem.contract, spec, knobs)


def fit_sampler(problem: Problem, settings: FitOptions) -> Work[Fitted]:
    """Do steps 1 to 4, without a choice between fit and plain sampler.

    Args:
        problem: the search.
        settings: of the fit.

    Returns:
        A generator of Progress whose result is the fit.
    """
    images = images_of_search(problem, settings.trajectories + problem.options.image_count)
    teacher = yield from record_teacher(images, (yield from teacher_spec(images, settings.teacher)))
    student = Student(teacher, settings.trajectories, settings.history, settings.ridge)
    trial = yield from best_fit(student, own_config(problem.contract.sampler), settings)
    held_out = images.part(settings.trajectories, problem.options.image_count)
    plain = yield from best_plain(held_out, teacher.images[settings.trajectories :], settings.calls)
    sampler = replace(trial.sampler(teacher.initial_scale), fitted=_record(settings, teacher, student, trial))
    return Fitted(teacher, sampler, trial.score, plain)


def images_of_search(problem: Problem, count: int, offset: int = 0) -> Images:
    """The images that a search draws, seeds and classes in turn. Another seed of the search draws others.

    Args:
        problem: the search.
        count: number of images.
        offset: images of the search before these.

    Returns:
        The images.

    Raises:
        UsageError: a guidance scale for a contract without guidance.
    """
    model, options, scale = problem.model, problem.options, problem.options.guidance_scale
    if problem.contract.guidance == "none" and scale not in (None, 1.0):
        raise UsageError(
            f"guidance_scale is {scale:g}, but the contract has no guidance: choose guidance layout 'concat', or leave "
            "guidance_scale out"
        )
    known = options.classes or tuple(range(model.num_classes or 1))
    first = _FIRST_SEED + _SEEDS_OF_A_SEARCH * options.seed + offset
    seeds = tuple(range(first, first + count))
    labels = tuple(known[index % len(known)] for index in range(count))
    return Images(model, problem.contract, seeds, labels, problem.contract.guidance_scale(scale))


def best_fit(student: Student, scheduler_config: dict[str, Any], settings: FitOptions) -> Work[Trial]:
    """Fit on every candidate grid, then move the times of the best.

    Args:
        student: fits chains.
        scheduler_config: of the model's own scheduler.
        settings: calls and sweeps.

    Returns:
        A generator of Progress whose result is the best trial.
    """
    ends = student.teacher.times[0], student.teacher.times[-1]
    grids = list(time_grids(settings.calls, scheduler_config, *ends))
    if not grids:
        raise UsageError(f"{settings.calls} calls do not fit between the times {ends[0]:g} and {ends[1]:g}: take fewer")
    best: Trial | None = None
    for done, (name, grid) in enumerate(grids):
        yield Progress("time grids", done, len(grids), name)
        trial = student.fit(Times.coupled(grid))
        if best is None or trial.score > best.score:
            best = trial
    assert best is not None
    return (yield from improve_times(student, best, settings.sweeps))


def learned_spec(learned: LearnedSampler, images: Images) -> SamplerSpec:
    """The recorded scheduler of a learned sampler, with what it was learned for."""
    contract, scale = images.contract, images.guidance_scale
    made_for = {
        "model_class": contract.model_class,
        "model_digest": contract.model_digest,
        "guidance": contract.guidance,
        "guidance_range": [scale, scale],
        "latent_shape": list(contract.latent_shape),
    }
    scheduler = LearnedScheduler.of([learned], own_config(contract.sampler), made_for, full_run_of(contract.sampler))
    return record_scheduler(scheduler, learned.calls, {})


def whole_calls(graph: BlockGraph, contract: Contract, spec: SamplerSpec, knobs: dict[str, str]) -> Candidate:
    """The candidate that computes every call of a sampler in full."""
    ratio = max(0.0, 1 - spec.calls / contract.sampler.calls)
    return Candidate([frozenset(graph.block_names)] * spec.calls, ratio, knobs, sampler=spec)


def _record(settings: FitOptions, teacher: Teacher, student: Student, trial: Trial) -> dict[str, str]:
    return {
        "method": "fit",
        "teacher": f"{teacher.spec.class_name} with {teacher.spec.calls} calls ({settings.teacher})",
        "trajectories": str(settings.trajectories),
        "memory": str(settings.history),
        "held_out_db": f"{trial.score:.2f}",
        "network_calls": str(student.network_calls),
    }


def knobs_of(problem: Problem, settings: FitOptions, fitted: Fitted) -> dict[str, str]:
    """The record of a learned sampler in a schedule's origin."""
    teacher, plain, contract = fitted.teacher, fitted.plain, problem.contract
    return {
        "calls": str(settings.calls),
        "full_run": f"{contract.sampler.class_name} with {contract.sampler.calls} calls",
        "teacher": f"{settings.teacher}, {teacher.spec.class_name} with {teacher.spec.calls} calls",
        "trajectories": str(settings.trajectories),
        "memory": str(settings.history),
        "score_db": f"{fitted.score:.3f}",
        **({} if plain is None else {"best_plain": plain.name, "best_plain_db": f"{plain.score:.3f}"}),
    }

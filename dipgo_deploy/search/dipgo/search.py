"""The gradient search as a whole: train a pruner, cut its scores at the requested ratio, polish the result.

The stages meet in the pruner's file. A search that was interrupted at any point and is run again gives the same
schedule. Training counts iterations and polish counts trajectories, never seconds, so this holds on any machine.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np

from dipgo_deploy.core.disk import check_target
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.search.calibration import calibrate
from dipgo_deploy.search.candidate import Candidate, mask_from_sets, sets_from_mask
from dipgo_deploy.search.cost import GateCost
from dipgo_deploy.search.dipgo.objective import Objective
from dipgo_deploy.search.dipgo.options import DipgoOptions
from dipgo_deploy.search.dipgo.polish import Polished, PolishOptions, polish
from dipgo_deploy.search.dipgo.pruner_file import load_training, save_training
from dipgo_deploy.search.dipgo.threshold import candidate_of_ratio, mask_of_ratio, sets_of
from dipgo_deploy.search.dipgo.training import Training
from dipgo_deploy.search.evaluator import Evaluator, StagedEvaluator
from dipgo_deploy.search.options import NOTE, TOLERANCE, SearchOptions
from dipgo_deploy.search.problem import Problem
from dipgo_deploy.search.rules import uniform

__all__ = ["GradientSearch", "dipgo"]

_EVALUATION_SEED = 5_000_000
"""Distance of the seeds that evaluate exchanges from the seeds that the pruner was trained on."""

_SAVE_EVERY = 10

_SCREEN = 3
"""One in three of the images that evaluate exchanges sees them first, and its gradient proposes them."""

_STATES = 12
"""Largest number of states that an evaluator keeps of its base run."""


def dipgo(problem: Problem) -> Work[Candidate]:
    """Search by gradient: train the remaining iterations, cut, polish.

    Args:
        problem: model, blocks, contract and options, with DipgoOptions for settings.

    Returns:
        A generator of Progress whose result is the candidate, with the search's record among its knobs.

    Raises:
        InputError: the pruner's file belongs to another search, or training meets numbers that are not finite.
    """
    return (yield from GradientSearch(problem).run())


class GradientSearch:
    """DiP-GO's search for one problem. Training continues from an existing pruner file.

    Args:
        problem: model, blocks, contract and options, with DipgoOptions for settings.

    Raises:
        InputError: the pruner's file belongs to another search, or cannot be written.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.settings = problem, problem.options.settings_as(DipgoOptions)
        self.training, self.file = Training(problem), self.settings.pruner
        if self.file is not None:
            check_target(self.file)
            if self.file.exists():
                load_training(self.file, self.training)

    def run(self) -> Work[Candidate]:
        """Train the remaining iterations, cut at the ratio, polish."""
        started, before, training = time.monotonic(), self.training.seconds, self.training
        yield from self._notes()
        yield from self.train()
        candidate, polished = self.candidate(self.problem.options.ratio), None
        if self.settings.polish_budget:
            polished = yield from self.polish()
            candidate = self._polished_candidate(polished.mask, candidate)
        cost = training.search_cost + (polished.search_cost if polished else 0.0)
        knobs = {
            "iterations": str(training.done),
            "budget": self.settings.budget,
            "loss": self.settings.loss,
            **candidate.knobs,
            **({"score_db": f"{polished.score_db:.3f}"} if polished else {}),
            "search_cost": f"{cost:.1f}",
            "seconds": f"{before + time.monotonic() - started:.1f}",
        }
        return Candidate(candidate.computed, candidate.ratio, knobs)

    def _notes(self) -> Work[None]:
        """Report the iteration of an existing pruner, and the memory of a gradient step."""
        done, total = self.training.done, self.settings.iterations
        if done:
            yield Progress(NOTE, done, total, f"continuing {self.file} after {done} of {total} iterations")
        if done < total:
            yield Progress(NOTE, done, total, self.training.objective.memory.text)

    def train(self) -> Work[None]:
        """Train the remaining iterations. The file is written every few iterations and after the last iteration."""
        training = self.training
        for progress in training.run():
            if self.file is not None and (training.done % _SAVE_EVERY == 0 or progress.done == progress.total):
                save_training(self.file, training)
            yield progress

    def candidate(self, ratio: float) -> Candidate:
        """The compute sets of ``ratio`` by the pruner's scores. The model is not run. UsageError for a ratio of 1."""
        if not 0 <= ratio < 1:
            raise UsageError(f"ratio {ratio} is not in [0, 1): give the share of MACs to prune, such as 0.8")
        training = self.training
        return candidate_of_ratio(training.scores(), training.graph, training.pricer, ratio, self.settings.order)

    def polish(self) -> Work[Polished]:
        """Exchange entries, starting from the better of two masks: the pruner's candidate, or evenly spread steps.

        Evenly spread steps are considered only where they prune enough.
        """
        training, problem = self.training, self.problem
        ratio, graph = problem.options.ratio, training.graph
        objective, cost = Objective(problem), GateCost(training.pricer, graph, "marginal")
        evaluator = self._evaluator()
        proposing = evaluator.evaluators[0].calibration
        even_options = SearchOptions("uniform", ratio, latency=problem.options.latency)
        even = uniform(graph, problem.contract.sampler.calls, even_options)
        starts = [self._affordable(ratio), *([even] if even.ratio >= ratio - TOLERANCE else [])]
        best = max(starts, key=lambda candidate: evaluator.psnr_db(candidate.computed).mean())
        rounds = polish(
            mask_from_sets(best.computed, graph.block_names), ratio, evaluator, cost,
            lambda mask: objective.gradient_on(proposing, mask, cost)[1].numpy(),
            PolishOptions(seed=problem.options.seed),
        )  # fmt: skip
        for polished in rounds:
            cost_so_far, budget = polished.search_cost + objective.search_cost, self.settings.polish_budget
            yield Progress("polish", cost_so_far, budget, f"{polished.score_db:.2f} dB")
            if cost_so_far >= budget:
                break
        return Polished(polished.mask, polished.score_db, cost_so_far)

    def _evaluator(self) -> StagedEvaluator:
        """Evaluators of the polish, on images apart from those of the training: a third first, then the others."""
        problem, images = self.problem, self.problem.options.image_count
        first = self.settings.first_seed + _EVALUATION_SEED
        bounds = sorted({0, -(-images // _SCREEN), images})
        options = problem.options
        calibrations = (
            calibrate(
                problem.model, problem.graph, problem.contract, range(first + low, first + high),
                classes=options.classes, guidance_scale=options.guidance_scale,
            )
            for low, high in pairwise(bounds)
        )  # fmt: skip
        return StagedEvaluator(
            [Evaluator(each, problem.graph, options.kind, _STATES, options.latency) for each in calibrations]
        )

    def _affordable(self, ratio: float) -> Candidate:
        """The candidate with the smallest cut ratio, at least ``ratio``, that actually prunes as much as ``ratio``."""
        ratios = (min(ratio + extra * TOLERANCE / 4, 0.999) for extra in range(9))
        candidates = [self.candidate(each) for each in ratios]
        return next((candidate for candidate in candidates if candidate.ratio >= ratio), candidates[-1])

    def _polished_candidate(self, mask: np.ndarray, start: Candidate) -> Candidate:
        """The polished ``mask``. Compute that exchanges left over goes to the entries of the highest scores."""
        graph, pricer, ratio = self.training.graph, self.training.pricer, self.problem.options.ratio
        computed = sets_from_mask(mask, graph.block_names)
        if pricer.ratio(computed) > ratio + TOLERANCE:
            scores = np.where(mask, 2.0, self.training.scores())  # 2 is above every probability
            fuller = list(sets_of(mask_of_ratio(scores, graph, pricer, ratio), graph, pricer))
            if pricer.ratio(fuller) >= ratio - TOLERANCE:
                computed = fuller
        return Candidate(computed, pricer.ratio(computed), {**start.knobs, "polished": "yes"})
